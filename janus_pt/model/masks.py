"""What a packed row's slots and tokens may read: masks sample by sample, or FlexAttention's block masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.model.attention import Mask, SampleMask, additive
from janus_pt.model.block_masks import cross_block_mask, slots_block_mask, source_block_mask
from janus_pt.model.flex import MIN_HEAD_SIZE
from janus_pt.model.positions import Rotation, make_rotation
from janus_pt.packing.padded import PaddedLayout
from janus_pt.packing.slots import (
    POSITION,
    RANK,
    SEGMENT,
    START,
    STOP,
    UNTIL,
    Slots,
    Source,
    visible,
)


def uses_block_masks(device: torch.device, dropout: float, head_size: int) -> bool:
    """Whether masks are built for FlexAttention.

    On CUDA, unless attention weights are dropped out, or heads are too small for its kernels.
    """
    return device.type == "cuda" and dropout == 0.0 and head_size >= MIN_HEAD_SIZE


@dataclass(frozen=True)
class EncoderMasks:
    """What all encoder layers read in one pass.

    mask: which source tokens each token may read; None: all of them. rotation: the tokens', if positions are rotations.
    """

    mask: Mask | None
    rotation: Rotation | None = None


@dataclass(frozen=True)
class LayerMasks:
    """What one decoder layer computes and reads.

    num_content: the first `num_content` slots are the keys of self-attention. first: slots before it
    are keys only; their output is not computed. The masks are of the slots from `first` on; None:
    everything is read. With a `causal_mask`, which a second self-attention has, the first
    self-attention computes all slots, and `self_mask` is of all. rotation: of all slots, if positions
    are rotations.
    """

    num_content: int
    first: int
    self_mask: Mask | None
    cross_mask: Mask | None
    causal_mask: Mask | None = None
    rotation: Rotation | None = None


class DecoderMasks:
    """What the decoder layers of `config` read in one training pass; made when a layer first asks for it.

    A pipeline stage without the last layer makes no mask for that one. Masks that are not `block_masks`
    are numbers of the activations' `dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: Slots,
        source: Source,
        dtype: torch.dtype,
        block_masks: bool,
    ) -> None:
        assert source.layout is not None, "slots are decoded in one row"
        self._causal = config.causal_self_attention
        self._slots = slots
        self._source = source
        self._source_layout = source.layout
        self._dtype = dtype
        self._block_masks = block_masks
        self._rotation = make_rotation(config, slots[POSITION], dtype)

    def for_layer(self, is_last: bool) -> LayerMasks:
        """The masks of the last layer, which computes slots that predict only, or of any other."""
        return self._last_layer if is_last else self._other_layers

    @cached_property
    def _other_layers(self) -> LayerMasks:
        slots = self._slots
        causal_mask = self._self_mask(0, slots.query_layout, True) if self._causal else None
        return LayerMasks(
            num_content=slots.num_content,
            first=0,
            self_mask=self._self_mask(0, slots.query_layout, False),
            cross_mask=self._cross_mask(0, slots.query_layout),
            causal_mask=causal_mask,
            rotation=self._rotation,
        )

    @cached_property
    def _last_layer(self) -> LayerMasks:
        slots = self._slots
        first, layout = slots.first_predicting, slots.predicting_layout
        causal_mask = None
        if self._causal:
            # The causal self-attention has all contents as keys: the one before it computes all slots.
            causal_mask = self._self_mask(first, layout, True)
            self_mask = self._other_layers.self_mask
        else:
            self_mask = self._self_mask(first, layout, False)
        return LayerMasks(
            num_content=slots.num_content,
            first=first,
            self_mask=self_mask,
            cross_mask=self._cross_mask(first, layout),
            causal_mask=causal_mask,
            rotation=self._rotation,
        )

    def _self_mask(self, first: int, layout: PaddedLayout, causal: bool) -> Mask:
        """The slots from `first` on, which `layout` covers, read content slots."""
        slots = self._slots
        if self._block_masks:
            return slots_block_mask(slots, first, causal)
        masks = sides_masks(slots, first, layout, self._dtype, causal)
        return SampleMask(layout, slots.key_layout, masks)

    def _cross_mask(self, first: int, layout: PaddedLayout) -> Mask:
        """The slots from `first` on, which `layout` covers, read the source tokens of their sample."""
        if self._block_masks:
            return cross_block_mask(self._slots, self._source, first)
        return tokens_mask(layout, self._source_layout, self._dtype)


def make_encoder_masks(
    config: ModelConfig, source: Source, dtype: torch.dtype, block_masks: bool
) -> EncoderMasks:
    """Source tokens read the source tokens of their own sample; `block_masks` and `dtype` as in `DecoderMasks`."""
    rotation = make_rotation(config, source.positions, dtype)
    if source.layout is None:
        # One sample a row, as in decoding: only padding is hidden.
        if source.is_padded is False:
            return EncoderMasks(None, rotation)
        is_token = (source.samples >= 0)[:, None, None]
        return EncoderMasks(additive(is_token, dtype), rotation)
    if block_masks:
        return EncoderMasks(source_block_mask(source), rotation)
    return EncoderMasks(tokens_mask(source.layout, source.layout, dtype), rotation)


def sides_masks(
    slots: Slots, first: int, layout: PaddedLayout, dtype: torch.dtype, causal: bool = False
) -> tuple[Tensor, ...]:
    """For each side the mask of its slots from `first` on, which `layout` covers, and its contents."""
    table = slots.table[0]
    masks = []
    for query_indices, key_indices in zip(layout.indices, slots.key_layout.indices, strict=True):
        # Index -1 is padding: any slot may stand in for it. Padding keys are hidden below; what
        # padding queries read is thrown away.
        queries = table[first:][query_indices.clamp(min=0)]
        keys = table[key_indices.clamp(min=0)]
        is_slot = (key_indices >= 0)[:, None]
        mask = readable(queries, keys, causal) & is_slot
        masks.append(additive(mask[None], dtype))
    return tuple(masks)


def tokens_mask(layout: PaddedLayout, keys: PaddedLayout, dtype: torch.dtype) -> SampleMask:
    """Every slot or token of `layout` reads all source tokens `keys` of its sample."""
    mask = additive((keys.indices[0] >= 0)[None, :, None], dtype)
    return SampleMask(layout, keys, (mask,) * len(layout.indices))


def readable(queries: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    """Which contents `keys [..., keys, 7]` the slots `queries [..., queries, 7]` may read.

    `[..., queries, keys]`, boolean; `causal`: none to a slot's right.
    """
    queries = queries[..., :, None, :]
    keys = keys[..., None, :, :]
    allowed: Tensor = visible(
        queries[..., SEGMENT],
        queries[..., UNTIL],
        queries[..., START],
        queries[..., STOP],
        keys[..., SEGMENT],
        keys[..., RANK],
    )
    if causal:
        allowed = allowed & (keys[..., POSITION] <= queries[..., POSITION])
    return allowed
