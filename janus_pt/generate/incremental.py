"""What decoding keeps: the sources' keys and values, and those of the tokens written so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from janus_pt.generate.hypotheses import score_dtype
from janus_pt.model.attention import KeysValues, LayerCache
from janus_pt.model.blocks import DecoderLayer
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source
from janus_pt.utils.errors import UserError


@dataclass(frozen=True)
class SourceMemory:
    """A batch of sources as the decoder reads them; made once, for all passes and both ways of decoding.

    Attributes:
        layers: each decoder layer's cross-attention keys and values, `[sources, heads, source, head_size]`.
        mask: which places are no padding, `[sources, 1, 1, source]`; None if none is.
        length_logits: `[sources, length_classes]`.
    """

    layers: list[KeysValues]
    mask: Tensor | None
    length_logits: Tensor

    def __len__(self) -> int:
        return len(self.length_logits)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
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
    """Run the encoder. Waits for the device once, to see whether there is padding."""
    encoder_out = model.encode(source)
    layers = [
        cast(DecoderLayer, layer).encoder_attn.keys_values(encoder_out)
        for layer in model.decoder.layers
    ]
    real = source.samples >= 0
    mask = None if bool(real.all()) else real[:, None, None, :]
    return SourceMemory(layers, mask, model.length_logits(encoder_out, source))


class IncrementalDecoder:
    """P_AR with what was read kept. Rows are `[sources × copies]`, source by source.

    Only content slots enter the cache, once each; query slots, if the model has them, never do.

    Raises:
        UserError: the model has no P_AR.
    """

    def __init__(self, model: JanusTransformer, memory: SourceMemory) -> None:
        if model.config.causal_self_attention:
            raise UserError(
                "mode: this model has model.causal_self_attention and no P_AR; decode it with nar"
            )
        self._model = model
        self._memory = memory
        self._caches = [LayerCache(layer) for layer in memory.layers]
        self._length = 0

    def step(self, tokens: Tensor) -> Tensor:
        """Read each row's next token, `[rows]`, bos first; log-probabilities of the one after it, `[rows, vocab]`."""
        position = torch.full_like(
            tokens[:, None], self._length + self._model.config.ar_position_offset
        )
        self._write_at(self._length, self._length + 1)
        self._length += 1
        return self._read(tokens[:, None], position, None)[:, 0]

    def read_block(self, tokens: Tensor, start: Tensor, reach: int) -> Tensor:
        """Read several tokens at once, row r's from place `start[r]` on, over whatever was there before.

        Args:
            tokens: `[rows, block]`.
            start: `[rows]`; everything before must have been read.
            reach: more than the last place that is written in any row.

        Returns:
            For each token the log-probabilities of the one after it, `[rows, block, vocab]`. What comes after a
            token that turns out wrong is harmless: it is out of sight until it is written anew.
        """
        config = self._model.config
        place = start[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        sight = torch.arange(reach, device=tokens.device) <= place[:, :, None]
        position = (place + config.ar_position_offset).clamp(max=config.max_positions - 1)
        self._write_at(place, reach)
        return self._read(tokens, position, sight[:, None])

    def _read(self, tokens: Tensor, position: Tensor, sight: Tensor | None) -> Tensor:
        """Enter content slots `[rows, length]`, with their queries if P_AR is read off these."""
        config, num_content = self._model.config, tokens.shape[1]
        if config.ar_stream == "query":
            tokens = torch.cat((tokens, torch.full_like(tokens, config.mask_token_id)), dim=1)
            position = torch.cat((position, position), dim=1)
            sight = None if sight is None else torch.cat((sight, sight), dim=2)
        hidden = self._model.decode_step(
            tokens, position, num_content, sight, self._memory.mask, self._caches
        )
        return log_probabilities(self._model, hidden)

    def _write_at(self, places: int | Tensor, reach: int) -> None:
        for cache in self._caches:
            cache.places, cache.reach = places, reach

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row `rows[i]` has read; both belong to one source."""
        for cache in self._caches:
            cache.select(rows)

    def keep(self, sources: Tensor, rows: Tensor) -> None:
        """Go on with some sources only: `sources` of them, and their `rows`."""
        self._memory = self._memory.select(sources)
        for cache, memory in zip(self._caches, self._memory.layers, strict=True):
            cache.memory = memory
            cache.select(rows)


def log_probabilities(model: JanusTransformer, hidden: Tensor) -> Tensor:
    """Of the vocabulary, for hidden states `[..., hidden]`; in float32 at least."""
    logits = model.logits(hidden)
    return torch.log_softmax(logits, dim=-1, dtype=score_dtype(logits))
