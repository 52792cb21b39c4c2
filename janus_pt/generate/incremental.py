"""What decoding keeps: the sources' keys and values, and the keys and values of the tokens written so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from janus_pt.generate.hypotheses import score_dtype
from janus_pt.model.blocks import DecoderLayer
from janus_pt.model.kv_cache import KeysValues, LayerCache
from janus_pt.model.native import BestTokens
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source
from janus_pt.utils.errors import UserError


@dataclass(frozen=True)
class SourceMemory:
    """A batch of sources as the decoder reads them; made once, for all passes of all modes.

    Attributes:
        layers: each decoder layer's cross-attention keys and values,
            `[sources, heads, source, head_size]`.
        mask: true where there is no padding, `[sources, 1, 1, source]`; None if there is none.
        length_logits: `[sources, length_classes]`.
    """

    layers: list[KeysValues]
    mask: Tensor | None
    length_logits: Tensor

    def __len__(self) -> int:
        return len(self.length_logits)

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.length_logits.device

    def select(self, sources: Tensor) -> SourceMemory:
        """The memory of `sources` alone, or in another order."""
        layers = [
            (keys.index_select(0, sources), values.index_select(0, sources))
            for keys, values in self.layers
        ]
        mask = None if self.mask is None else self.mask.index_select(0, sources)
        return SourceMemory(layers, mask, self.length_logits.index_select(0, sources))


def read_sources(model: JanusTransformer, source: Source) -> SourceMemory:
    """Run the encoder. Waits for the device if nobody has seen yet whether there is padding."""
    encoder_out = model.encode(source)
    layers = [
        cast(DecoderLayer, layer).encoder_attn.keys_values(encoder_out)
        for layer in model.decoder.layers
    ]
    real = source.samples >= 0
    # Without a mask attention takes a faster kernel in all passes: worth waiting for the device.
    is_padded = not bool(real.all()) if source.is_padded is None else source.is_padded
    mask = real[:, None, None, :] if is_padded else None
    return SourceMemory(layers, mask, model.length_logits(encoder_out, source))


class IncrementalDecoder:
    """P_AR with a cache. Rows are `[sources × copies]`, source by source.

    Only content slots enter the cache, once each; query slots, if the model has them, never do.

    Raises:
        UserError: the model has no P_AR.
    """

    def __init__(self, model: JanusTransformer, memory: SourceMemory) -> None:
        # Such a model's mask symbols read to the left alone (BANG's): no stream of it is P_AR.
        if model.config.causal_self_attention:
            raise UserError(
                "mode: this model has model.causal_self_attention and no P_AR; decode it with nar"
            )
        self._model = model
        self._memory = memory
        self._caches = [LayerCache(layer) for layer in memory.layers]
        self._length = 0

    def start(self, rows: int) -> Tensor:
        """Read the target's prefix but its last token in each of `rows`; that token, `[rows]`.

        Places count from there on.
        """
        *read, newest = self._model.config.target_frame.prefix
        for token in read:
            self.step(self._full(rows, token))
        return self._full(rows, newest)

    def _full(self, rows: int, token: int) -> Tensor:
        return torch.full((rows,), token, device=self._memory.device)

    def step(self, tokens: Tensor) -> Tensor:
        """Read each row's next token; the first one is what `start` returned.

        Args:
            tokens: `[rows]`.

        Returns:
            Log-probabilities of the token after it, `[rows, vocab]`.
        """
        place = self._length
        self._length += 1
        self._reserve(len(tokens), self._length)
        return run_pass(_read_next, self._model, self._memory, self._caches, tokens, place)

    @property
    def chooses(self) -> bool:
        """Whether the model can choose tokens without giving their log-probabilities: see `choose_next`."""
        return self._model.native is not None

    def choose_next(self, tokens: Tensor, forbidden: Tensor) -> BestTokens:
        """As `step`, but only the best of the tokens that are not true in `forbidden [vocab]`, for each row."""
        place = self._length
        self._length += 1
        self._reserve(len(tokens), self._length)
        mask = self._memory.mask
        hidden = _next_hidden(self._model, self._caches, mask, tokens, place)
        return choose(self._model, hidden, forbidden)

    def choose_in_block(
        self, tokens: Tensor, start: Tensor, reach: int, forbidden: Tensor
    ) -> BestTokens:
        """As `read_block`, but only the best token after each, as `choose_next`, `[rows, block]`."""
        start, reach = start + self._length, reach + self._length
        self._reserve(len(tokens), reach)
        order = torch.arange(reach, device=tokens.device)
        mask = self._memory.mask
        hidden = _block_hidden(self._model, self._caches, mask, tokens, start, order)
        return choose(self._model, hidden, forbidden)

    def read_block(self, tokens: Tensor, start: Tensor, reach: int) -> Tensor:
        """Read several tokens at once, from another place in each row.

        What the cache held at these places is overwritten. What was read after a token that turns
        out to be wrong is harmless: it is out of sight until it is written again.

        Args:
            tokens: `[rows, block]`.
            start: `[rows]`: place of the first token behind what `start` and `step` have read;
                everything before must have been read.
            reach: more than the last place that is written in any row.

        Returns:
            Log-probabilities of the token after each, `[rows, block, vocab]`.
        """
        start, reach = start + self._length, reach + self._length
        self._reserve(len(tokens), reach)
        order = torch.arange(reach, device=tokens.device)
        return run_pass(_read_block, self._model, self._memory, self._caches, tokens, start, order)

    def _reserve(self, rows: int, reach: int) -> None:
        for cache in self._caches:
            cache.reserve(rows, reach)

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row `rows[i]` has read; both belong to one source."""
        # The sources' memory stays where it is: it is the same for both rows.
        for cache in self._caches:
            cache.select(rows)

    def keep(self, sources: Tensor, rows: Tensor) -> None:
        """Go on with `sources` alone, and with their `rows`."""
        self._memory = self._memory.select(sources)
        for cache, memory in zip(self._caches, self._memory.layers, strict=True):
            cache.memory = memory
            cache.select(rows)


def _read_next(
    model: JanusTransformer,
    caches: list[LayerCache],
    cross_mask: Tensor | None,
    tokens: Tensor,
    place: int | Tensor,
) -> Tensor:
    """Log-probabilities `[rows, vocab]` of the token after `tokens [rows]`, which stand at `place` in all rows."""
    return log_probabilities(model, _next_hidden(model, caches, cross_mask, tokens, place))


def _next_hidden(
    model: JanusTransformer,
    caches: list[LayerCache],
    cross_mask: Tensor | None,
    tokens: Tensor,
    place: int | Tensor,
) -> Tensor:
    """Hidden states `[rows, hidden]` in place of the log-probabilities of `_read_next`."""
    # All rows are equally long, so the caches take a number: a plain copy, no indexing.
    for cache in caches:
        cache.write_positions = place
        cache.reach = place + 1
    block = tokens[:, None]
    # While a pass is recorded `place` is a tensor of one number, which torch takes for a number as well.
    position = torch.full_like(block, cast(int, place + model.config.ar_position_offset))
    # No mask: the newest token reads everything in the cache.
    return _read(model, caches, cross_mask, block, position, None)[:, 0]


def _read_block(
    model: JanusTransformer,
    caches: list[LayerCache],
    cross_mask: Tensor | None,
    tokens: Tensor,
    start: Tensor,
    order: Tensor,
) -> Tensor:
    """Log-probabilities `[rows, block, vocab]` of the tokens after `tokens [rows, block]`, which stand from
    `start [rows]` on; `order` are the numbers below the reach."""
    return log_probabilities(model, _block_hidden(model, caches, cross_mask, tokens, start, order))


def _block_hidden(
    model: JanusTransformer,
    caches: list[LayerCache],
    cross_mask: Tensor | None,
    tokens: Tensor,
    start: Tensor,
    order: Tensor,
) -> Tensor:
    """Hidden states `[rows, block, hidden]` in place of the log-probabilities of `_read_block`."""
    config = model.config
    row = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    place = start[:, None] + order[: tokens.shape[1]]
    visible = order <= place[:, :, None]
    # Rows that are ahead may reach beyond the last position; what they read there is not used.
    position = (place + config.ar_position_offset).clamp(max=config.max_positions - 1)
    for cache in caches:
        cache.write_positions = (row, place)
        cache.reach = order.shape[0]
    return _read(model, caches, cross_mask, tokens, position, visible[:, None])


def _read(
    model: JanusTransformer,
    caches: list[LayerCache],
    cross_mask: Tensor | None,
    tokens: Tensor,
    position: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Read content slots `[rows, length]`, with their query slots if P_AR is predicted there: hidden states
    `[rows, length, hidden]` that predict."""
    config = model.config
    num_content = tokens.shape[1]
    if config.ar_stream == "query":
        # A query slot has its content slot's position and sees the same keys.
        queries = torch.full_like(tokens, config.mask_token_id)
        tokens = torch.cat((tokens, queries), dim=1)
        position = torch.cat((position, position), dim=1)
        mask = None if mask is None else torch.cat((mask, mask), dim=2)
    return model.decode_step(tokens, position, num_content, mask, cross_mask, caches)


def run_pass(
    function: Callable[..., Tensor],
    model: JanusTransformer,
    memory: SourceMemory,
    caches: list[LayerCache],
    tokens: Tensor,
    *arguments: Tensor | int | None,
) -> Tensor:
    """`function(model, caches, memory.mask, tokens, *arguments)`, as one recorded call if the model makes such.

    Args:
        function: a pass of the decoder, of this module or another: no closure, and nothing it does may depend on sizes,
            except on whether rows are as many as sources.
        tokens: rows first.
    """
    recorded = model.recorded
    if recorded is None:
        return function(model, caches, memory.mask, tokens, *arguments)
    given = (memory.mask, tokens, *arguments)
    is_given = tuple(argument is not None for argument in given)
    num_tensors = [len(cache.tensors) for cache in caches]

    def of_tensors(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        passed = [next(rest) if present else None for present in is_given]
        own_caches = [LayerCache.of([next(rest) for _ in range(count)]) for count in num_tensors]
        return function(model, own_caches, *passed)

    # A model that was moved or converted has other weights than those recorded.
    weights = model.embed_tokens.get_parameter("weight").data_ptr()
    key = (function, weights, len(tokens) == len(memory), is_given)
    tensors = [
        argument if isinstance(argument, Tensor) else torch.tensor(argument)
        for argument in given
        if argument is not None
    ]
    for cache in caches:
        tensors += cache.tensors
    return recorded.call(key, of_tensors, tensors)


def log_probabilities(model: JanusTransformer, hidden: Tensor) -> Tensor:
    """Log-probabilities of the vocabulary, for hidden states `[..., hidden]`; float32 at least."""
    logits = model.logits(hidden)
    return torch.log_softmax(logits, dim=-1, dtype=score_dtype(logits))


def choose(model: JanusTransformer, hidden: Tensor, forbidden: Tensor) -> BestTokens:
    """The best token for each of `hidden [..., hidden]` by the model's native passes, which it must have."""
    assert model.native is not None
    best = model.native.best_tokens(hidden.flatten(0, -2), forbidden, model.config.eos_token_id)
    shape = hidden.shape[:-1]
    return BestTokens(*(part.view(shape) for part in best))
