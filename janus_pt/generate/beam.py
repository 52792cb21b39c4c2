"""Beam search over P_AR, with fairseq's rules (`fairseq/sequence_generator.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_pt.generate.constraints import NOTHING, Rules
from janus_pt.generate.hypotheses import Hypotheses, score_dtype
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


def beam_search(
    model: JanusTransformer,
    source: Source,
    rules: Rules,
    longest: int,
    beams: int,
    length_penalty: float,
) -> Hypotheses:
    """The `beams` best hypotheses found for each source, best first.

    A step looks at the 2 · `beams` best continuations. An eos among the first `beams` of them finishes a
    hypothesis; the best others go on. A sentence is done when `beams` hypotheses are finished, and leaves the batch;
    at the maximum length all that are left must end.
    """
    config, device = model.config, source.tokens.device
    memory = read_sources(model, source)
    decoder = IncrementalDecoder(model, memory)
    going = _Going(
        (len(memory), beams, longest),
        config.pad_token_id,
        score_dtype(memory.length_logits),
        device,
    )
    finished = _Finished(going, length_penalty)
    newest = torch.full_like(going.tokens[..., 0], config.bos_token_id)
    for step in range(longest + 1):
        log_probs = rules.apply(
            decoder.step(newest.flatten()), going.tokens[..., :step].flatten(0, 1)
        )
        log_probs = log_probs.unflatten(0, newest.shape) + going.total[..., None]
        total, choice = log_probs.flatten(1).topk(2 * beams)
        parent, token = choice // config.vocab_size, choice % config.vocab_size
        ends = (token == config.eos_token_id) & total.isfinite()
        complete = finished.add(going, parent[:, :beams], total[:, :beams], ends[:, :beams])
        leaving = int(complete.sum())
        if step == longest or leaving == len(complete):
            break
        stay = ends.byte().argsort(dim=1, stable=True)[:, :beams]
        newest = token.gather(1, stay)
        rows = going.extend(parent.gather(1, stay), newest, total.gather(1, stay))
        if leaving:
            sentences = (~complete).nonzero()[:, 0]
            newest = newest[sentences]
            going.keep(sentences)
            decoder.keep(sentences, rows[sentences].flatten())
        else:
            decoder.reorder(rows.flatten())
    return finished.hypotheses()


class _Going:
    """Unfinished hypotheses: tokens and the log-probability of each prefix, both `[sentences, beams, longest]`.

    `total [sentences, beams]` is that of the whole; at first only one hypothesis of each sentence is alive.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        pad_token_id: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.length = 0
        self.tokens = torch.full(shape, pad_token_id, device=device)
        self.prefixes = torch.zeros(shape, dtype=dtype, device=device)
        self.total = torch.full(shape[:2], NOTHING, dtype=dtype, device=device)
        self.total[:, 0] = 0
        self.sentences = torch.arange(shape[0], device=device)

    def hypotheses(self, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and prefixes of the hypotheses `parent [sentences, n]`, each `[sentences, n, longest]`."""
        row = torch.arange(len(parent), device=parent.device)[:, None]
        return self.tokens[row, parent], self.prefixes[row, parent]

    def extend(self, parent: Tensor, token: Tensor, total: Tensor) -> Tensor:
        """Go on with `token` after `parent`; the rows they come from. All are `[sentences, beams]`."""
        self.tokens, self.prefixes = self.hypotheses(parent)
        self.tokens[..., self.length], self.prefixes[..., self.length] = token, total
        self.total = total
        self.length += 1
        return torch.arange(len(parent), device=parent.device)[:, None] * parent.shape[1] + parent

    def keep(self, sentences: Tensor) -> None:
        """Go on with these sentences only."""
        self.tokens, self.prefixes, self.total, self.sentences = (
            x[sentences] for x in (self.tokens, self.prefixes, self.total, self.sentences)
        )


class _Finished:
    """Finished hypotheses in the order of finishing: `beams` places a sentence, and one for what comes too late."""

    def __init__(self, going: _Going, length_penalty: float) -> None:
        _, self._beams, _ = going.tokens.shape
        self._length_penalty = length_penalty
        self._tokens = going.tokens[:, :1].repeat(1, self._beams + 1, 1)
        self._prefixes = going.prefixes[:, :1].repeat(1, self._beams + 1, 1)
        self._scores = torch.full_like(self._prefixes[..., 0], NOTHING)
        self._lengths = torch.zeros_like(self._tokens[..., 0])
        self._count = torch.zeros_like(self._tokens[:, 0, 0])
        self._passes = torch.zeros_like(self._count)

    def add(self, going: _Going, parent: Tensor, total: Tensor, ends: Tensor) -> Tensor:
        """Take the hypotheses that `ends [sentences, beams]` marks: those of `parent` with eos after them.

        Returns:
            Which of the sentences that go on now have all their hypotheses.
        """
        sentences = going.sentences
        self._passes[sentences] += 1
        before = self._count[sentences]
        place = before[:, None] + ends.cumsum(1) - 1
        place = place.where(ends, self._beams).clamp(max=self._beams)
        self._count[sentences] = count = before + ends.sum(1)
        row = sentences[:, None]
        self._tokens[row, place], self._prefixes[row, place] = going.hypotheses(parent)
        self._scores[row, place] = total / (going.length + 1) ** self._length_penalty
        self._lengths[row, place] = going.length
        return count >= self._beams

    def hypotheses(self) -> Hypotheses:
        """All of them, best first."""
        tokens, prefixes, scores, lengths = (
            x[:, : self._beams] for x in (self._tokens, self._prefixes, self._scores, self._lengths)
        )
        written = torch.arange(tokens.shape[-1], device=tokens.device) < lengths[..., None]
        token_scores = prefixes.diff(dim=-1, prepend=torch.zeros_like(prefixes[..., :1])).where(
            written, 0
        )
        return Hypotheses(tokens, token_scores, lengths, scores, self._passes).best_first()
