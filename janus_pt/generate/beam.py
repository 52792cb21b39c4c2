"""Beam search over P_AR, with fairseq's rules (`fairseq/sequence_generator.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.generate.active_rows import ActiveRows, looks_for_finished
from janus_pt.generate.constraints import Rules
from janus_pt.generate.hypotheses import Hypotheses, score_dtype
from janus_pt.generate.incremental import IncrementalDecoder, SourceMemory, read_sources
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


def beam_search(
    model: JanusTransformer,
    source: Source,
    rules: Rules,
    shortest: int,
    longest: int,
    num_beams: int,
    length_penalty: float,
    late_stopping: bool,
) -> Hypotheses:
    """The `num_beams` best hypotheses found for each source, best first.

    A step looks at the 2 · `num_beams` best continuations. An eos among the first `num_beams` of
    them finishes a hypothesis; the best others go on. A sentence is done when `num_beams`
    hypotheses are finished, and leaves the batch; at the maximum length all hypotheses must end.

    With `late_stopping` better hypotheses replace finished ones, until the best that goes on would
    be worse than all of them if it ended here.
    """
    config = model.config
    memory = read_sources(model, source)
    decoder = IncrementalDecoder(model, memory)
    newest = decoder.start(len(memory) * num_beams)
    beams = _start(memory, newest, num_beams, longest, config)
    finished = _Finished.empty(beams)
    for step in range(longest + 1):
        # Step 1: P_AR of the next token of every beam, without the tokens that the rules forbid.
        written = beams.tokens[..., :step].flatten(0, 1)
        log_probs = rules.apply(decoder.step(beams.newest.flatten()), written)
        # Step 2: the best continuations of a sentence over all its beams. Each beam has one eos,
        # so 2 · num_beams of them hold num_beams that go on.
        continued = log_probs.unflatten(0, beams.newest.shape) + beams.total[..., None]
        total, choice = continued.flatten(1).topk(2 * num_beams)
        parent = choice // config.vocab_size
        token = choice % config.vocab_size
        # Step 3: put the hypotheses that end among the first num_beams aside.
        ends = (token == config.eos_token_id) & total.isfinite()
        scores = total / (step + config.scored_frame) ** length_penalty
        first = slice(num_beams)
        endings = _Endings(step, parent[:, first], scores[:, first], ends[:, first])
        if late_stopping:
            worst = finished.keep_best(beams, endings)
            complete = scores.masked_fill(ends, -torch.inf).amax(dim=1) <= worst
        else:
            complete = finished.add(beams, endings)
        if step == longest:
            break
        # This waits for the device. Of a complete sentence that stays, `add` takes nothing more; `keep_best` would.
        looks = late_stopping or looks_for_finished(step, shortest, longest, memory.device)
        num_complete = int(complete.sum()) if looks else 0
        if num_complete == len(complete):
            break
        # Step 4: go on with the best that do not end; the sort is stable, so they stay in order.
        best = ends.byte().argsort(dim=1, stable=True)[:, :num_beams]
        rows = beams.extend(
            step, parent.gather(1, best), token.gather(1, best), total.gather(1, best)
        )
        # Step 5: complete sentences leave, and the cache follows its beams.
        if num_complete:
            sentences = (~complete).nonzero()[:, 0]
            beams.keep(sentences)
            decoder.keep(sentences, rows[sentences].flatten())
        else:
            decoder.reorder(rows.flatten())
    return finished.hypotheses(num_beams)


@dataclass
class _Beams(ActiveRows):
    """Unfinished hypotheses; a row is a sentence with its beams.

    Attributes:
        tokens: `[sentences, beams, longest]`.
        prefixes: log-probability of each prefix, same shape.
        total: of the whole hypothesis, `[sentences, beams]`.
        newest: its last token, same shape: the one that is read next.
    """

    tokens: Tensor
    prefixes: Tensor
    total: Tensor
    newest: Tensor

    def select(self, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and prefixes of the beams `parent [sentences, n]`, `[sentences, n, longest]`."""
        row = torch.arange(len(parent), device=parent.device)[:, None]
        return self.tokens[row, parent], self.prefixes[row, parent]

    def extend(self, step: int, parent: Tensor, token: Tensor, total: Tensor) -> Tensor:
        """Write `token` after the beams `parent`; all are `[sentences, beams]`.

        Returns:
            The decoder's row of each parent, same shape.
        """
        self.tokens, self.prefixes = self.select(parent)
        self.tokens[..., step] = token
        self.prefixes[..., step] = total
        self.total = total
        self.newest = token
        num_sentences, num_beams = parent.shape
        first_row = torch.arange(num_sentences, device=parent.device)[:, None] * num_beams
        return first_row + parent


def _start(
    memory: SourceMemory, newest: Tensor, num_beams: int, longest: int, config: ModelConfig
) -> _Beams:
    """All sentences before the first step, in which rows read `newest [sentences · beams]`."""
    index = torch.arange(len(memory), device=memory.device)
    tokens = index.new_full((len(memory), num_beams, longest), config.pad_token_id)
    prefixes = torch.zeros_like(tokens, dtype=score_dtype(memory.length_logits))
    # All beams would write the same: only the first one may be continued in the first step.
    total = torch.full_like(prefixes[..., 0], -torch.inf)
    total[:, 0] = 0
    return _Beams(index, tokens, prefixes, total, newest.view(len(memory), num_beams))


@dataclass(frozen=True)
class _Endings:
    """The best continuations of a step, some of which end a hypothesis.

    Attributes:
        step: tokens of a hypothesis that ends here.
        parent: the beam that is continued, `[sentences, beams]`.
        scores: log-probabilities divided for their length, same shape.
        ends: whether the continuation is eos, same shape.
    """

    step: int
    parent: Tensor
    scores: Tensor
    ends: Tensor


@dataclass
class _Finished:
    """Finished hypotheses of all sentences, in the order in which they finished.

    The places are `[batch, beams + 1]`. The last one takes the rejected hypotheses: every write then
    has one shape, and none waits for the device.
    """

    tokens: Tensor
    prefixes: Tensor
    scores: Tensor
    lengths: Tensor
    count: Tensor
    passes: Tensor

    @classmethod
    def empty(cls, beams: _Beams) -> _Finished:
        """Places for the whole batch, before the first step."""
        num_sentences, num_beams, _ = beams.tokens.shape
        shape = (num_sentences, num_beams + 1)
        return cls(
            tokens=beams.tokens[:, :1].repeat(1, num_beams + 1, 1),
            prefixes=beams.prefixes[:, :1].repeat(1, num_beams + 1, 1),
            scores=beams.prefixes.new_full(shape, -torch.inf),
            lengths=beams.tokens.new_zeros(shape),
            count=torch.zeros_like(beams.index),
            passes=torch.zeros_like(beams.index),
        )

    def add(self, beams: _Beams, endings: _Endings) -> Tensor:
        """Take the hypotheses that end.

        Returns:
            Which of the active sentences now have all their hypotheses.
        """
        num_beams = beams.tokens.shape[1]
        ends = endings.ends
        # The next free places; the last one for hypotheses that do not end or come too late.
        before = self.count[beams.index]
        self.passes[beams.index] += before < num_beams
        place = before[:, None] + ends.cumsum(1) - 1
        place = place.where(ends, num_beams).clamp(max=num_beams)
        count = before + ends.sum(1)
        self.count[beams.index] = count

        row = beams.index[:, None]
        self.tokens[row, place], self.prefixes[row, place] = beams.select(endings.parent)
        self.scores[row, place] = endings.scores
        # A tensor: a number would be copied to the device, for which the host waits.
        self.lengths[row, place] = torch.full_like(place, endings.step)
        return count >= num_beams

    def keep_best(self, beams: _Beams, endings: _Endings) -> Tensor:
        """Of the finished hypotheses and the ones that end now, keep the best.

        Returns:
            The lowest score of each active sentence; -inf if it has places left.
        """
        num_beams = beams.tokens.shape[1]
        row = beams.index
        self.passes[row] += 1
        new = endings.scores.masked_fill(~endings.ends, -torch.inf)
        scores, chosen = torch.cat((self.scores[row, :num_beams], new), dim=1).topk(num_beams)
        tokens, prefixes = beams.select(endings.parent)
        lengths = torch.full_like(endings.parent, endings.step)
        sentence = torch.arange(len(row), device=row.device)[:, None]
        for kept, added in (
            (self.tokens, tokens),
            (self.prefixes, prefixes),
            (self.lengths, lengths),
        ):
            both = torch.cat((kept[row, :num_beams], added), dim=1)
            kept[row, :num_beams] = both[sentence, chosen]
        self.scores[row, :num_beams] = scores
        return scores.amin(dim=1)

    def hypotheses(self, num_beams: int) -> Hypotheses:
        """All of them, best first."""
        prefixes = self.prefixes[:, :num_beams]
        lengths = self.lengths[:, :num_beams]
        # A token's log-probability is the difference of two prefixes'.
        token_scores = prefixes.diff(dim=-1, prepend=torch.zeros_like(prefixes[..., :1]))
        position = torch.arange(prefixes.shape[-1], device=prefixes.device)
        token_scores = token_scores.where(position < lengths[..., None], 0)
        hypotheses = Hypotheses(
            tokens=self.tokens[:, :num_beams],
            token_scores=token_scores,
            lengths=lengths,
            scores=self.scores[:, :num_beams],
            passes=self.passes,
        )
        return hypotheses.best_first()
