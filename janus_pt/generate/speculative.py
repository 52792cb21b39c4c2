"""Speculative decoding with one model: P_NAR drafts, P_AR verifies. The output is greedy search's, token for token.

P_NAR drafts what follows the tokens kept so far (all masks at once, the kept tokens visible on the left), and P_AR
reads a block of the draft in one parallel pass. The longest prefix on which greedy search agrees is kept, and P_AR's
own next token. What is left of the draft is tried next; when nothing of a block could be kept, the rest is drafted
again. Keys and values of what is kept stay in the cache. In the manner of Xia et al. 2023 and Leviathan et al. 2023,
where drafter and verifier are two models.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from janus_pt.config.schema import Count, ModelConfig, Positive
from janus_pt.generate.constraints import NOTHING, never_written
from janus_pt.generate.hypotheses import Hypotheses, LengthOptions, score_dtype
from janus_pt.generate.incremental import IncrementalDecoder, SourceMemory, read_sources
from janus_pt.generate.mask_predict import never_generated
from janus_pt.generate.refine import BOUNDARY, all_masked, refine
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

FIRST_BLOCK = 8
"""Drafted tokens that are verified first."""
BLOCK_MARGIN = 4
"""A block is this much longer than what was kept of the one before it; after one that was kept whole, twice as long."""


class SpeculativeOptions(LengthOptions):
    """Options of speculative decoding."""

    draft_iterations: Positive = 1
    """Decoder passes to write a draft."""
    redraft_at: Count = 0
    """Draft the rest again when at most this many tokens of a block were kept."""
    block_size: Positive | None = None
    """Drafted tokens that are verified at once; default: somewhat more than were kept last time."""
    lossy: bool = False
    """Keep drafted tokens that greedy search would nearly have chosen: the output is not greedy search's any more."""
    lossy_top_k: Positive = 3
    """`lossy`: the token is among P_AR's k best ..."""
    lossy_margin: Annotated[float, Field(ge=0)] = 1.0
    """... and its log-probability at most this much below the best one's."""

    @model_validator(mode="after")
    def _fit_together(self) -> SpeculativeOptions:
        tolerance = {"lossy_top_k", "lossy_margin"} & self.model_fields_set
        if tolerance and not self.lossy:
            raise ValueError(f"{min(tolerance)}: has no effect unless lossy is set")
        return self


@torch.inference_mode()
def speculative(model: JanusTransformer, source: Source, options: SpeculativeOptions) -> Hypotheses:
    """One hypothesis for each source: greedy search's, unless `lossy`. Each sentence advances at its own pace.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    longest = options.longest(config.max_positions - 1 - config.ar_position_offset)
    memory = read_sources(model, source)
    predicted = (memory.length_logits.argmax(dim=1) - BOUNDARY).clamp(options.min_length, longest)
    decoder = IncrementalDecoder(model, memory)
    state = _State(memory, predicted, longest, config)
    while True:
        _redraft(model, state, options)
        draft, offered = state.offer(options.block_size)
        block = torch.cat((state.newest[:, None], draft), dim=1)
        log_probs = decoder.read_block(block, state.kept, int(state.kept.max()) + block.shape[1])
        choice, score, agrees = _verify(log_probs, draft, state.kept, longest, config, options)
        agrees &= torch.arange(draft.shape[1], device=draft.device) < offered[:, None]
        accepted = agrees.byte().cumprod(dim=1).sum(dim=1)
        going = state.advance(choice, score, offered, accepted, options.redraft_at)
        if not len(going):
            return state.result()
        if len(going) < len(choice):
            decoder.keep(going, going)


def _redraft(model: JanusTransformer, state: _State, options: SpeculativeOptions) -> None:
    """Let P_NAR write the rest of the sentences whose draft has failed, unless they are as long as predicted."""
    rows = (state.failed & (state.predicted > state.kept)).nonzero()[:, 0]
    if not len(rows):
        return
    memory = state.memory if len(rows) == len(state.kept) else state.memory.select(rows)
    draft = all_masked(state.predicted[rows], model.config)
    place = torch.arange(draft.tokens.shape[1] - 1, device=rows.device)
    kept = place < state.kept[rows, None]
    draft.tokens[:, 1:] = state.tokens[rows, : len(place)].where(kept, draft.tokens[:, 1:])
    draft.masked[:, 1:] &= ~kept
    written = refine(model, memory, draft, options.draft_iterations, never_generated(model.config))
    state.take(rows, written.tokens, options.draft_iterations)


def _verify(
    log_probs: Tensor,
    draft: Tensor,
    kept: Tensor,
    longest: int,
    config: ModelConfig,
    options: SpeculativeOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """What greedy search writes after each token read, by its own rules; and which drafted tokens may stay.

    Args:
        log_probs: `[rows, block + 1, vocab]`; overwritten.

    Returns:
        Tokens and their log-probabilities, `[rows, block + 1]`; `[rows, block]`.
    """
    step = kept[:, None] + torch.arange(log_probs.shape[1], device=kept.device)
    end = log_probs[..., config.eos_token_id].clone()
    log_probs.index_fill_(2, torch.tensor(never_written(config), device=kept.device), NOTHING)
    log_probs[..., config.eos_token_id] = end.masked_fill(step < options.min_length, NOTHING)
    score, choice = log_probs.max(dim=-1)
    if options.lossy:
        of_draft = log_probs[:, :-1].gather(2, draft[..., None])
        better = (log_probs[:, :-1] > of_draft).sum(dim=-1)
        near = (better < options.lossy_top_k) & (
            score[:, :-1] - of_draft[..., 0] <= options.lossy_margin
        )
        choice[:, :-1] = draft.where(near, choice[:, :-1])
        score[:, :-1] = of_draft[..., 0].where(near, score[:, :-1])
    must_end = step >= longest
    choice, score = choice.masked_fill(must_end, config.eos_token_id), end.where(must_end, score)
    return choice, score, choice[:, :-1] == draft


class _State:
    """How far each sentence is. Attributes are of the rows that go on; what they have written lies with all others'."""

    def __init__(
        self, memory: SourceMemory, predicted: Tensor, longest: int, config: ModelConfig
    ) -> None:
        self.memory, self.predicted = memory, predicted
        self.kept = torch.zeros_like(predicted)
        """Tokens written so far, all but the last of which P_AR has read (bos counts as read last)."""
        self.newest = torch.full_like(predicted, config.bos_token_id)
        self.failed = torch.ones_like(predicted, dtype=torch.bool)
        """Whether there is no draft that is worth another look."""
        self._eos, self._pad = config.eos_token_id, config.pad_token_id
        self._block = torch.full_like(predicted, FIRST_BLOCK)
        self._rows = torch.arange(len(predicted), device=predicted.device)
        # One place for eos, and one for what is not to be kept.
        self._tokens = torch.full((len(predicted), longest + 2), self._pad, device=predicted.device)
        self._draft = self._tokens.clone()
        self._scores = torch.zeros(
            self._tokens.shape, dtype=score_dtype(memory.length_logits), device=memory.device
        )
        self._lengths, self._passes, self._offered, self._accepted = torch.zeros_like(
            predicted
        ).repeat(4, 1)

    @property
    def tokens(self) -> Tensor:
        """What the rows have written, `[rows, longest + 1]`."""
        return self._tokens[self._rows, :-1]

    def take(self, rows: Tensor, tokens: Tensor, passes: int) -> None:
        """Whole drafts `[rows, length]` for some of the rows, and the passes that each took."""
        which = self._rows[rows]
        self._draft[which, : tokens.shape[1]] = tokens
        self._passes[which] += passes

    def offer(self, block_size: int | None) -> tuple[Tensor, Tensor]:
        """The next drafted tokens, `[rows, block]`, and how many of them count, `[rows]`."""
        offered = (self.predicted - self.kept).clamp(min=0)
        offered = (
            torch.minimum(offered, self._block)
            if block_size is None
            else offered.clamp(max=block_size)
        )
        place = self.kept[:, None] + torch.arange(int(offered.max()), device=offered.device)
        return self._draft[self._rows[:, None], place.clamp(max=self._draft.shape[1] - 1)], offered

    def advance(
        self, choice: Tensor, score: Tensor, offered: Tensor, accepted: Tensor, redraft_at: int
    ) -> Tensor:
        """Keep the accepted tokens and the one after them; returns the rows that have not come to their end."""
        place = torch.arange(choice.shape[1], device=choice.device)
        column = (self.kept[:, None] + place).where(
            place <= accepted[:, None], self._tokens.shape[1] - 1
        )
        self._tokens[self._rows[:, None], column], self._scores[self._rows[:, None], column] = (
            choice,
            score,
        )
        self.newest = choice.gather(1, accepted[:, None])[:, 0]
        ended = self.newest == self._eos
        self._lengths[self._rows] = self.kept + accepted + ~ended
        self._passes[self._rows] += 1
        self._offered[self._rows] += offered
        self._accepted[self._rows] += accepted
        self.kept = self.kept + accepted + 1
        self.failed = accepted <= redraft_at
        longer = (2 * self._block).clamp(max=self._draft.shape[1])
        self._block = torch.where(accepted == offered, longer, accepted + BLOCK_MARGIN)
        going = (~ended).nonzero()[:, 0]
        if len(going) < len(ended):
            self._leave(going)
        return going

    def _leave(self, going: Tensor) -> None:
        """Go on with some of the rows."""
        self.memory = self.memory.select(going)
        self.predicted, self.kept, self.newest = (
            self.predicted[going],
            self.kept[going],
            self.newest[going],
        )
        self.failed, self._block, self._rows = (
            self.failed[going],
            self._block[going],
            self._rows[going],
        )

    def result(self) -> Hypotheses:
        """All sentences."""
        place = torch.arange(self._tokens.shape[1], device=self._tokens.device)
        total = self._scores.masked_fill(place > self._lengths[:, None], 0).sum(dim=1) / (
            self._lengths + 1
        )
        outside = place >= self._lengths[:, None]
        tokens, scores = (
            self._tokens.masked_fill(outside, self._pad),
            self._scores.masked_fill(outside, 0),
        )
        tokens, scores, lengths, total = (
            x[:, None] for x in (tokens[:, :-2], scores[:, :-2], self._lengths, total)
        )
        return Hypotheses(
            tokens, scores, lengths, total, self._passes, self._offered, self._accepted
        )
