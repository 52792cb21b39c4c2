"""Greedy and beam search over P_AR, with fairseq's rules (`fairseq/sequence_generator.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_pt.config import ModelConfig, Positive
from janus_pt.generate.cache import IncrementalDecoder
from janus_pt.generate.types import Hypotheses, LengthOptions, is_one_of
from janus_pt.model.janus import JanusTransformer
from janus_pt.slots import Source

NOTHING = float("-inf")


class AutoregressiveOptions(LengthOptions):
    """Options of left-to-right decoding."""

    num_beams: Positive = 1
    """1 is greedy search."""
    length_penalty: float = 1.0
    """A hypothesis' score is its log-probability over the number of its tokens, eos counted, to this power."""


def never_generated(config: ModelConfig) -> set[int]:
    """Symbols that P_AR must not produce; unk is one that it may, also where it serves as the mask symbol."""
    return {config.pad_token_id, config.bos_token_id, config.mask_token_id} - {config.unk_token_id}


@torch.inference_mode()
def beam_search(model: JanusTransformer, source: Source, options: AutoregressiveOptions) -> Hypotheses:
    """The `num_beams` best hypotheses found for each source, best first.

    A step looks at the 2 · `num_beams` best continuations. An eos among the first `num_beams` of them finishes a
    hypothesis; the best others go on. A sentence is done when `num_beams` hypotheses are finished; at the maximum
    length all that are left must end.
    """
    config, beams = model.config, options.num_beams
    longest = options.longest(config.max_positions - 1 - config.ar_position_offset)
    allowed = _Allowed(config, options.min_length, longest, source.tokens.device)
    decoder = IncrementalDecoder(model, source, copies=beams)
    going = _Going((len(source.tokens), beams, longest), config.pad_token_id, decoder.dtype, source.tokens.device)
    finished = _Finished(going, options.length_penalty)
    newest = torch.full_like(going.tokens[..., 0], config.bos_token_id)
    for step in range(longest + 1):
        log_probs = decoder.step(newest.flatten()).unflatten(0, newest.shape)
        log_probs = log_probs.masked_fill(~allowed.at(step), NOTHING)
        total, choice = (going.total[..., None] + log_probs).flatten(1).topk(2 * beams)
        parent, token = choice // config.vocab_size, choice % config.vocab_size
        ends = (token == config.eos_token_id) & total.isfinite()
        finished.add(going, parent[:, :beams], total[:, :beams], ends[:, :beams])
        if step == longest or finished.complete():
            break
        stay = ends.byte().argsort(dim=1, stable=True)[:, :beams]
        newest = token.gather(1, stay)
        rows = going.extend(parent.gather(1, stay), newest, total.gather(1, stay))
        if beams > 1:
            decoder.select(rows)
    return finished.hypotheses()


class _Allowed:
    """Which tokens may come at a step, `[vocab]`: no eos before the shortest length, nothing else at the longest."""

    def __init__(self, config: ModelConfig, shortest: int, longest: int, device: torch.device) -> None:
        self._shortest, self._longest = shortest, longest
        self._eos = is_one_of({config.eos_token_id}, config.vocab_size, device)
        self._tokens = ~is_one_of(never_generated(config), config.vocab_size, device)

    def at(self, step: int) -> Tensor:
        if step == self._longest:
            return self._eos
        return self._tokens & ~self._eos if step < self._shortest else self._tokens


class _Going:
    """Unfinished hypotheses: tokens and the log-probability of each prefix, both `[batch, beams, longest]`.

    `total [batch, beams]` is that of the whole; at first only one hypothesis of each sentence is alive.
    """

    def __init__(
        self, shape: tuple[int, int, int], pad_token_id: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = 0
        self.tokens = torch.full(shape, pad_token_id, device=device)
        self.prefixes = torch.zeros(shape, dtype=dtype, device=device)
        self.total = torch.full(shape[:2], NOTHING, dtype=dtype, device=device)
        self.total[:, 0] = 0
        self._row = torch.arange(shape[0], device=device)[:, None]

    def hypotheses(self, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and prefixes of the hypotheses `parent [batch, n]`, each `[batch, n, longest]`."""
        return self.tokens[self._row, parent], self.prefixes[self._row, parent]

    def extend(self, parent: Tensor, token: Tensor, total: Tensor) -> Tensor:
        """Go on with `token` after `parent`, all `[batch, beams]`; the rows they come from, `[batch × beams]`."""
        self.tokens, self.prefixes = self.hypotheses(parent)
        self.tokens[..., self.length], self.prefixes[..., self.length] = token, total
        self.total = total
        self.length += 1
        return (self._row * parent.shape[1] + parent).flatten()


class _Finished:
    """Finished hypotheses in the order of finishing: `beams` places a sentence, and one for what comes too late."""

    def __init__(self, going: _Going, length_penalty: float) -> None:
        batch, self._beams, _ = going.tokens.shape
        self._length_penalty = length_penalty
        self._tokens = going.tokens[:, :1].repeat(1, self._beams + 1, 1)
        self._prefixes = going.prefixes[:, :1].repeat(1, self._beams + 1, 1)
        self._scores = torch.full_like(self._prefixes[..., 0], NOTHING)
        self._lengths = torch.zeros_like(self._tokens[..., 0])
        self._count = torch.zeros_like(self._tokens[:, 0, 0])
        self._passes = torch.zeros_like(self._count)
        self._row = torch.arange(batch, device=self._count.device)[:, None]

    def add(self, going: _Going, parent: Tensor, total: Tensor, ends: Tensor) -> None:
        """Take the hypotheses that `ends [batch, beams]` marks: those of `parent` with eos after them."""
        self._passes += self._count < self._beams
        place = self._count[:, None] + ends.cumsum(1) - 1
        place = place.where(ends, self._beams).clamp(max=self._beams)
        self._count = self._count + ends.sum(1)
        self._tokens[self._row, place], self._prefixes[self._row, place] = going.hypotheses(parent)
        self._scores[self._row, place] = total / (going.length + 1) ** self._length_penalty
        self._lengths[self._row, place] = going.length

    def complete(self) -> bool:
        """Whether every sentence has all its hypotheses; waits for the device."""
        return bool((self._count >= self._beams).all())

    def hypotheses(self) -> Hypotheses:
        """All of them, best first."""
        tokens, prefixes, scores, lengths = (
            x[:, : self._beams] for x in (self._tokens, self._prefixes, self._scores, self._lengths)
        )
        written = torch.arange(tokens.shape[-1], device=tokens.device) < lengths[..., None]
        token_scores = prefixes.diff(dim=-1, prepend=torch.zeros_like(prefixes[..., :1])).where(written, 0)
        return Hypotheses(tokens, token_scores, lengths, scores, self._passes).best_first()
