"""Speculative decoding with one model: P_NAR drafts, P_AR verifies. The output is greedy search's.

P_NAR drafts what follows the tokens kept so far: all masks at once, the kept tokens visible on the
left. P_AR reads a block of the draft in one parallel pass. The longest prefix on which greedy search
agrees is kept, and P_AR's own next token. The rest of the draft is tried next; when nothing of a
block could be kept, the rest is drafted again. Keys and values of kept tokens stay in the cache. In
the manner of Xia et al. 2023 and Leviathan et al. 2023, whose drafter and verifier are two models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.config.section import Count, Positive
from janus_pt.generate.active_rows import ActiveRows
from janus_pt.generate.constraints import (
    allow_end,
    end_at_longest,
    forbidden_in_ar,
    forbidden_in_nar,
    ids_on,
    vocabulary_mask,
)
from janus_pt.generate.hypotheses import (
    DecodingOptions,
    Hypotheses,
    most_tokens,
    score_dtype,
)
from janus_pt.generate.incremental import IncrementalDecoder, SourceMemory, read_sources
from janus_pt.generate.mask_predict import lengths_from_head
from janus_pt.generate.refine import all_masked, refine
from janus_pt.generate.round_view import RoundView
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

FIRST_BLOCK = 8
"""Drafted tokens that are verified first."""
BLOCK_MARGIN = 4
"""A block is this much longer than the number of tokens kept of the block before.

After a block that was kept whole it is twice as long."""


class SpeculativeOptions(DecodingOptions):
    """Speculative decoding."""

    draft_iterations: Positive = 1
    """Decoder passes to write a draft."""
    redraft_at: Count = 0
    """Draft the rest again when at most this many tokens of a block were kept."""
    block_size: Positive | None = None
    """Drafted tokens that are verified at once; default: somewhat more than were kept last time."""
    lossy: bool = False
    """Keep drafted tokens that greedy search would nearly have chosen: the output is not greedy
    search's any more."""
    lossy_top_k: Positive = 3
    """`lossy`: the token is among P_AR's k best ..."""
    lossy_margin: Annotated[float, Field(ge=0)] = 1.0
    """... and its log-probability at most this much below the best one's."""

    @model_validator(mode="after")
    def _fit_together(self) -> SpeculativeOptions:
        lossy_options = {"lossy_top_k", "lossy_margin"} & self.model_fields_set
        if lossy_options and not self.lossy:
            raise ValueError(f"{min(lossy_options)}: has no effect unless lossy is set")
        return self

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of `speculative`."""
        return speculative(model, source, self)


@torch.inference_mode()
def speculative(model: JanusTransformer, source: Source, options: SpeculativeOptions) -> Hypotheses:
    """One hypothesis for each source: greedy search's, unless `lossy`.

    Each sentence advances at its own pace.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    longest = options.longest(most_tokens(config))
    memory = read_sources(model, source)
    decoder = IncrementalDecoder(model, memory)
    newest = decoder.start(len(memory))
    rows = _start(memory, newest, options.min_length, longest, config)
    outputs = _Outputs.like(rows)
    forbidden = ids_on(memory.device, forbidden_in_ar(config))
    early = [*forbidden_in_ar(config), config.eos_token_id]
    forbidden_early = vocabulary_mask(early, config.vocab_size, memory.device)
    view = rows.look()
    while True:
        # Step 1: P_NAR drafts the rest of the sentences whose draft is used up or has failed.
        _redraft(model, memory, rows, view, options)
        # Step 2: the next tokens of each draft; a sentence may have none left, and still advances.
        block, block_length = rows.next_block(
            options.block_size, view.block_width(options.block_size)
        )
        # Step 3: P_AR reads the newest kept token and the block in one pass. Each row writes to the
        # cache from its own position on, over the rejected tokens of the pass before.
        tokens = torch.cat((rows.newest[:, None], block), dim=1)
        reach = max(view.kept) + tokens.shape[1]
        # Step 4: the token that greedy search would write after each token read.
        if decoder.chooses and not options.lossy:
            best = decoder.choose_in_block(tokens, rows.kept, reach, forbidden_early)
            choice, score, end = allow_end(best, rows.kept, options.min_length, config.eos_token_id)
        else:
            log_probs = decoder.read_block(tokens, rows.kept, reach)
            log_probs, end = _allowed(log_probs, rows.kept, forbidden, config, options)
            choice, score = _choose(log_probs, block, options)
        choice, score = end_at_longest(choice, score, end, rows.kept, longest, config.eos_token_id)
        # Step 5: keep the block up to the first token that differs, and P_AR's own next one.
        accepted = _agreeing_prefix(choice, block, block_length)
        rows.advance(choice, score, block_length, accepted, config.eos_token_id)
        # Step 6: draft again after a block of which too little was kept; choose the next block size.
        rows.plan_next_block(block_length, accepted, options.redraft_at)
        # Step 7: finished sentences leave. The look is all that waits for the device in a round.
        view = rows.look()
        num_going = len(view.ended) - sum(view.ended)
        if not num_going:
            break
        if num_going < len(view.ended):
            going = torch.nonzero_static(~rows.ended, size=num_going)[:, 0]
            view = view.going()
            rows.leave(going, outputs)
            memory = memory.select(going)
            decoder.keep(going, going)
    rows.put_back(outputs)
    return outputs.hypotheses(config)


@dataclass
class _Rows(ActiveRows):
    """Sentences that are being written.

    Attributes:
        predicted: `[active]`: length that P_NAR's drafts have.
        kept: `[active]`: tokens written so far. P_AR has read all but the last one; before the
            first token bos is the one to be read.
        newest: `[active]`: that last token.
        ended: `[active]`: whether eos has been written.
        redraft: `[active]`: whether the draft is of no more use.
        block_size: `[active]`: drafted tokens to verify next.
        draft: `[active, longest + 2]`.
        tokens, scores: `[active, longest + 2]`: a place for eos, and a last one for rejected tokens.
        lengths: `[active]`, without eos; meaningful once the sentence has ended.
        passes, drafted, accepted: `[active]`, as in `Hypotheses`.
    """

    predicted: Tensor
    kept: Tensor
    newest: Tensor
    ended: Tensor
    redraft: Tensor
    block_size: Tensor
    draft: Tensor
    tokens: Tensor
    scores: Tensor
    lengths: Tensor
    passes: Tensor
    drafted: Tensor
    accepted: Tensor

    def look(self) -> RoundView:
        """Copy to the host what shapes depend on: one tensor, so that the host waits once."""
        state = (self.ended, self.redraft, self.kept, self.predicted, self.block_size)
        return RoundView(*torch.stack([tensor.long() for tensor in state]).tolist())

    def next_block(self, block_size: int | None, width: int) -> tuple[Tensor, Tensor]:
        """The next `width` drafted tokens, `[active, block]`, and how many of them count, `[active]`."""
        left = (self.predicted - self.kept).clamp(min=0)
        limit = self.block_size if block_size is None else torch.full_like(left, block_size)
        block_length = torch.minimum(left, limit)
        position = self.kept[:, None] + torch.arange(width, device=left.device)
        # Rows with a shorter block repeat the last place; `block_length` says where they stop.
        position = position.clamp(max=self.draft.shape[1] - 1)
        return self.draft.gather(1, position), block_length

    def advance(
        self, choice: Tensor, score: Tensor, block_length: Tensor, accepted: Tensor, eos: int
    ) -> None:
        """Write the `accepted [active]` tokens and the one after them.

        Args:
            choice, score: P_AR's tokens and their log-probabilities, `[active, block + 1]`.
        """
        offset = torch.arange(choice.shape[1], device=choice.device)
        last_place = self.tokens.shape[1] - 1
        # Rejected tokens go to the last place, which is not read: every write has one shape.
        position = self.kept[:, None] + offset
        position = position.where(offset <= accepted[:, None], last_place)
        self.tokens.scatter_(1, position, choice)
        self.scores.scatter_(1, position, score)

        self.newest = choice.gather(1, accepted[:, None])[:, 0]
        self.ended = self.newest == eos
        self.lengths = self.kept + accepted + ~self.ended
        self.kept = self.kept + accepted + 1
        self.passes += 1
        self.drafted += block_length
        self.accepted += accepted

    def plan_next_block(self, block_length: Tensor, accepted: Tensor, redraft_at: int) -> None:
        """Whether to draft again, and how many tokens to verify next, from how this block went."""
        self.redraft = accepted <= redraft_at
        longer = (2 * self.block_size).clamp(max=self.draft.shape[1])
        kept_whole = accepted == block_length
        self.block_size = torch.where(kept_whole, longer, accepted + BLOCK_MARGIN)


def _start(
    memory: SourceMemory, newest: Tensor, shortest: int, longest: int, config: ModelConfig
) -> _Rows:
    """All sentences before the first draft; `newest [sources]` is the token read next."""
    # A draft has eos as well, for which P_AR needs no position.
    longest_draft = min(longest, config.max_positions - config.target_frame.size)
    predicted = lengths_from_head(memory, config).clamp(shortest, longest_draft)
    tokens = predicted.new_full((len(memory), longest + 2), config.pad_token_id)
    zeros = torch.zeros_like(predicted)
    return _Rows(
        index=torch.arange(len(memory), device=memory.device),
        predicted=predicted,
        kept=zeros,
        newest=newest,
        ended=torch.zeros_like(predicted, dtype=torch.bool),
        redraft=torch.ones_like(predicted, dtype=torch.bool),
        block_size=torch.full_like(predicted, FIRST_BLOCK),
        draft=tokens.clone(),
        tokens=tokens,
        scores=torch.zeros_like(tokens, dtype=score_dtype(memory.length_logits)),
        lengths=zeros,
        # These are added to in place: each needs a tensor of its own.
        passes=zeros.clone(),
        drafted=zeros.clone(),
        accepted=zeros.clone(),
    )


def _redraft(
    model: JanusTransformer,
    memory: SourceMemory,
    rows: _Rows,
    view: RoundView,
    options: SpeculativeOptions,
) -> None:
    """Let P_NAR write the rest of the sentences that need a draft."""
    # A sentence as long as predicted gets no draft: P_AR writes on alone, a token a pass.
    state = zip(view.redraft, view.predicted, view.kept, strict=True)
    lengths = [
        (predicted, kept) for redraft, predicted, kept in state if redraft and predicted > kept
    ]
    if not lengths:
        return
    needs_draft = rows.redraft & (rows.predicted > rows.kept)
    which = torch.nonzero_static(needs_draft, size=len(lengths))[:, 0]
    if len(lengths) < len(view.kept):
        memory = memory.select(which)
    # The draft: the kept tokens, and masks up to the predicted length.
    draft = all_masked(rows.predicted[which], model.config, [predicted for predicted, _ in lengths])
    draft.host_masked = [predicted - kept for predicted, kept in lengths]
    prefix = len(model.config.target_frame.prefix)
    width = draft.tokens.shape[1] - prefix
    is_kept = torch.arange(width, device=which.device) < rows.kept[which, None]
    kept_tokens = rows.tokens[which, :width]
    # Tokens begin behind the prefix.
    draft.tokens[:, prefix:] = kept_tokens.where(is_kept, draft.tokens[:, prefix:])
    draft.masked[:, prefix:] &= ~is_kept
    forbidden = forbidden_in_nar(model.config)
    refined = refine(model, memory, draft, options.draft_iterations, forbidden)
    rows.draft[which, : refined.tokens.shape[1]] = refined.tokens
    rows.passes[which] += options.draft_iterations


def _allowed(
    log_probs: Tensor,
    kept: Tensor,
    forbidden: Tensor,
    config: ModelConfig,
    options: SpeculativeOptions,
) -> tuple[Tensor, Tensor]:
    """`log_probs [active, block + 1, vocab]`, overwritten with -inf where greedy search may not write, and
    eos's own as they were."""
    eos = config.eos_token_id
    end = log_probs[..., eos].clone()
    log_probs.index_fill_(2, forbidden, -torch.inf)
    if options.min_length:
        # The number of tokens before each prediction: rows are at different lengths.
        step = kept[:, None] + torch.arange(log_probs.shape[1], device=kept.device)
        log_probs[..., eos] = end.masked_fill(step < options.min_length, -torch.inf)
    return log_probs, end


def _choose(log_probs: Tensor, block: Tensor, options: SpeculativeOptions) -> tuple[Tensor, Tensor]:
    """The token that greedy search writes after each token read, by its own rules, at the longest length apart.

    In `lossy` decoding a drafted token that is good enough takes its place.

    Args:
        log_probs: `[active, block + 1, vocab]`, of what is allowed.
        block: the drafted tokens, `[active, block]`.

    Returns:
        Tokens and their log-probabilities, `[active, block + 1]`.
    """
    score, choice = log_probs.max(dim=-1)
    if options.lossy:
        choice, score = _accept_near(log_probs[:, :-1], block, choice, score, options)
    return choice, score


def _accept_near(
    log_probs: Tensor, block: Tensor, choice: Tensor, score: Tensor, options: SpeculativeOptions
) -> tuple[Tensor, Tensor]:
    """`choice` and `score` with the drafted tokens that P_AR finds nearly as good as its own.

    Args:
        log_probs: `[active, block, vocab]`, without the prediction after the block's last token.
    """
    draft_score = log_probs.gather(2, block[..., None])
    num_better = (log_probs > draft_score).sum(dim=-1)
    draft_score = draft_score[..., 0]
    in_top_k = num_better < options.lossy_top_k
    in_margin = score[:, :-1] - draft_score <= options.lossy_margin
    is_near = in_top_k & in_margin
    choice[:, :-1] = block.where(is_near, choice[:, :-1])
    score[:, :-1] = draft_score.where(is_near, score[:, :-1])
    return choice, score


def _agreeing_prefix(choice: Tensor, block: Tensor, block_length: Tensor) -> Tensor:
    """Drafted tokens before the first one that is not P_AR's choice, `[active]`."""
    agrees = choice[:, :-1] == block
    # What lies behind a row's own block was not offered, whatever it holds.
    agrees &= torch.arange(block.shape[1], device=block.device) < block_length[:, None]
    # The running product is 1 up to the first token that differs.
    return agrees.byte().cumprod(dim=1).sum(dim=1)


@dataclass
class _Outputs:
    """Outputs of the whole batch, as in `_Rows`."""

    tokens: Tensor
    scores: Tensor
    lengths: Tensor
    passes: Tensor
    drafted: Tensor
    accepted: Tensor

    @classmethod
    def like(cls, rows: _Rows) -> _Outputs:
        """Room for the outputs of all `rows`."""
        return cls(
            tokens=torch.zeros_like(rows.tokens),
            scores=torch.zeros_like(rows.scores),
            lengths=torch.zeros_like(rows.lengths),
            passes=torch.zeros_like(rows.passes),
            drafted=torch.zeros_like(rows.drafted),
            accepted=torch.zeros_like(rows.accepted),
        )

    def hypotheses(self, config: ModelConfig) -> Hypotheses:
        """One hypothesis for each sentence."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        # eos stands at position `length`. Its log-probability counts in the score of the output,
        # but it is no token of it.
        beyond_end = position > self.lengths[:, None]
        log_prob = self.scores.masked_fill(beyond_end, 0).sum(dim=1)
        score = log_prob / (self.lengths + config.scored_frame)
        outside = position >= self.lengths[:, None]
        tokens = self.tokens.masked_fill(outside, config.pad_token_id)
        token_scores = self.scores.masked_fill(outside, 0)
        # The places for eos and for rejected tokens are cut off.
        return Hypotheses(
            tokens=tokens[:, None, :-2],
            token_scores=token_scores[:, None, :-2],
            lengths=self.lengths[:, None],
            scores=score[:, None],
            passes=self.passes,
            drafted=self.drafted,
            accepted=self.accepted,
        )
