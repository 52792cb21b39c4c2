"""Left-to-right decoding one token at a time, with keys and values kept."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from janus_pt.generate.types import score_dtype
from janus_pt.model.attention import LayerCache, source_mask
from janus_pt.model.block import DecoderLayer
from janus_pt.model.janus import JanusTransformer
from janus_pt.slots import Source


class IncrementalDecoder:
    """P_AR of a batch of sources, `copies` hypotheses of each: rows are `[batch × copies]`, sentence by sentence.

    Only content slots enter the cache, once each; the query slot never does. The source's keys and values are
    computed once a sentence. The rows of a sentence may be exchanged among each other, not with another sentence's.
    """

    def __init__(self, model: JanusTransformer, source: Source, copies: int = 1) -> None:
        self._model = model
        self._position: int = model.config.ar_position_offset
        self._encoder_out = model.encode(source)
        reader = torch.zeros_like(source.samples[:, :1])
        mask = source_mask(reader, source)
        assert isinstance(mask, Tensor)
        self._cross_mask = mask.repeat_interleave(copies, dim=0)
        self.dtype = score_dtype(self._encoder_out)
        """Of the log-probabilities."""
        self._caches = [self._memory(cast(DecoderLayer, layer), copies) for layer in model.decoder.layers]

    def _memory(self, layer: DecoderLayer, copies: int) -> LayerCache:
        keys, values = layer.encoder_attn.keys_values(self._encoder_out)
        return LayerCache(memory=(keys.repeat_interleave(copies, dim=0), values.repeat_interleave(copies, dim=0)))

    def step(self, tokens: Tensor) -> Tensor:
        """Read each row's next token, `[rows]`, bos first; log-probabilities of the one after it, `[rows, vocab]`."""
        pair = torch.stack((tokens, torch.full_like(tokens, self._model.config.mask_token_id)), dim=1)
        hidden = self._model.decode_step(pair, self._position, self._encoder_out, self._cross_mask, self._caches)
        self._position += 1
        logits = self._model.logits(hidden)
        return torch.log_softmax(logits, dim=-1, dtype=score_dtype(logits))

    def select(self, rows: Tensor) -> None:
        """Let row i go on from what row `rows[i]` has read; both belong to one sentence."""
        for cache in self._caches:
            cache.select(rows)
