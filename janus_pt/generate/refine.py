"""Filling masks in a given number of passes: the loop inside mask-predict and inside speculative drafts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.generate.hypotheses import is_one_of, score_dtype
from janus_pt.generate.incremental import SourceMemory, log_probabilities
from janus_pt.model.attention import LayerCache
from janus_pt.model.transformer import JanusTransformer

CHUNK_ELEMENTS = {"cpu": 1 << 20}
"""Logits computed at once, however many slots are masked: what stays in a CPU's cache ..."""
DEVICE_CHUNK_ELEMENTS = 1 << 24
"""... and on other devices 64 MiB in float32."""
BOUNDARY = 2
"""bos and eos: what a target has more than an output."""


@dataclass
class Draft:
    """Outputs of known length, some of whose tokens are still masks.

    Attributes:
        tokens: `[rows, length + 2]`: bos, tokens and masks, eos, padding.
        lengths: `[rows]`, without bos and eos.
        masked: which are to be written, boolean, as `tokens`.
    """

    tokens: Tensor
    lengths: Tensor
    masked: Tensor


@dataclass
class Refined:
    """What became of a draft.

    Attributes:
        tokens: `[rows, length]`, without bos; eos and padding follow the last token.
        scores: log-probability of each token, same shape; 0 where nothing was to be written.
        passes: `[rows]`: decoder passes.
    """

    tokens: Tensor
    scores: Tensor
    passes: Tensor

    def inner(self) -> Refined:
        """Without the columns of bos and of the longest row's eos."""
        return Refined(self.tokens[:, 1:-1], self.scores[:, 1:-1], self.passes)


def all_masked(lengths: Tensor, config: ModelConfig) -> Draft:
    """`bos mask … mask eos` for each of `lengths [rows]`."""
    place = torch.arange(int(lengths.max()) + BOUNDARY, device=lengths.device)
    last = lengths[:, None] + 1
    tokens = torch.full_like(place, config.mask_token_id).where(place < last, config.pad_token_id)
    tokens = tokens.masked_fill(place == 0, config.bos_token_id).masked_fill(
        place == last, config.eos_token_id
    )
    return Draft(tokens, lengths, (place > 0) & (place < last))


def refine(
    model: JanusTransformer,
    memory: SourceMemory,
    draft: Draft,
    iterations: int,
    forbidden: Collection[int],
    adaptive: bool = False,
    rescore_all: bool = False,
    look: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> Refined:
    """Write a draft's masks in `iterations` decoder passes.

    Each pass predicts all masks at once; after pass t of T the k · (T - t) // T least confident of the k tokens that
    were masked at first are masked again, the others keep their scores.

    Args:
        draft: its rows are sources × copies, source by source.
        forbidden: tokens that are never chosen; scores are of the full distribution all the same.
        adaptive: a source stops when a pass has changed no token of its copies. What is compared are the whole
            outputs, before anything is masked again, so no mask is ever left.
        rescore_all: every pass writes all of the k tokens, whether masked or not.
        look: called after each pass with the rows' tokens, their scores, and which of them the pass has written.
    """
    barred = is_one_of(forbidden, model.config.vocab_size, draft.tokens.device)
    live = _Live(draft, memory)
    result = Refined(live.tokens.clone(), live.scores.clone(), torch.zeros_like(draft.lengths))
    masked = draft.masked
    for done in range(1, iterations + 1):
        hidden = read_visible(model, live.memory, live.tokens, live.mask)
        chosen = live.writable if rescore_all else masked
        best, score = most_probable(model, hidden[chosen], barred)
        live.tokens[chosen], live.scores[chosen] = best, score
        if look is not None:
            look(live.tokens, live.scores, chosen)
        if done == iterations or (adaptive and not live.part_with_unchanged(result, done)):
            break
        confidence = live.scores.masked_fill(~live.writable, torch.inf)
        masked = _lowest(confidence, live.writable.sum(dim=1) * (iterations - done) // iterations)
        live.tokens.masked_fill_(masked, model.config.mask_token_id)
    live.store(result, done)
    return result.inner()


class _Live:
    """The rows that go on: a copy of the draft's tokens, and their scores."""

    def __init__(self, draft: Draft, memory: SourceMemory) -> None:
        self.memory = memory
        self.tokens, self.writable, self._lengths = (
            draft.tokens.clone(),
            draft.masked,
            draft.lengths,
        )
        self._before = draft.tokens
        self.scores = torch.zeros(
            self.tokens.shape, dtype=score_dtype(memory.length_logits), device=memory.device
        )
        self._rows = torch.arange(len(self.tokens), device=memory.device)
        self.mask = visible_mask(self._lengths, self.tokens.shape[1])

    def store(self, result: Refined, passes: int) -> None:
        """Write these rows into the result; rows that go on overwrite it."""
        result.tokens[self._rows], result.scores[self._rows] = self.tokens, self.scores
        result.passes[self._rows] = passes

    def part_with_unchanged(self, result: Refined, passes: int) -> bool:
        """Store the sources that are as they were a pass ago, and go on without them; False if no other is left."""
        same = (self.tokens == self._before).all(dim=1).view(len(self.memory), -1).all(dim=1)
        if bool(same.all()):
            return False
        if bool(same.any()):
            self.store(result, passes)
            self._keep(~same)
        self._before = self.tokens.clone()
        return True

    def _keep(self, sources: Tensor) -> None:
        rows = sources.repeat_interleave(len(self._rows) // len(sources)).nonzero()[:, 0]
        self.memory = self.memory.select(sources.nonzero()[:, 0])
        self.tokens, self.scores, self.writable = (
            self.tokens[rows],
            self.scores[rows],
            self.writable[rows],
        )
        self._rows, self._lengths = self._rows[rows], self._lengths[rows]
        self.mask = visible_mask(self._lengths, self.tokens.shape[1])


def visible_mask(lengths: Tensor, width: int) -> Tensor | None:
    """What is no padding in rows of `lengths` tokens with bos and eos, `[rows, 1, 1, width]`; None if all is."""
    real = torch.arange(width, device=lengths.device) < lengths[:, None] + BOUNDARY
    return None if bool(real.all()) else real[:, None, None, :]


def read_visible(
    model: JanusTransformer, memory: SourceMemory, tokens: Tensor, mask: Tensor | None
) -> Tensor:
    """Hidden states `[rows, width, hidden]` of tokens and masks that all read each other: P_NAR's visible part."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    caches = [LayerCache(layer, keep=False) for layer in memory.layers]
    return model.decode_step(tokens, positions, tokens.shape[1], mask, memory.mask, caches)


def most_probable(model: JanusTransformer, hidden: Tensor, barred: Tensor) -> tuple[Tensor, Tensor]:
    """The best token that is not barred, and its log-probability, for each of `hidden [slots, hidden]`."""
    parts = []
    elements = CHUNK_ELEMENTS.get(hidden.device.type, DEVICE_CHUNK_ELEMENTS)
    for part in hidden.split(max(1, elements // len(barred))):
        log_probs = log_probabilities(model, part)
        score, token = log_probs.masked_fill_(barred, -torch.inf).max(dim=-1)
        parts.append((token, score))
    tokens, scores = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(scores)


def _lowest(scores: Tensor, count: Tensor) -> Tensor:
    """True at the `count [rows]` lowest of each row of `scores [rows, places]`."""
    order = scores.argsort(dim=1, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < count[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)
