"""Filling masks in a given number of passes: the loop of mask-predict and of speculative drafts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_pt.config.schema import Frame, ModelConfig
from janus_pt.generate.active_rows import ActiveRows, rows_of_sources
from janus_pt.generate.constraints import vocabulary_mask
from janus_pt.generate.hypotheses import score_dtype
from janus_pt.generate.incremental import (
    SourceMemory,
    choose,
    log_probabilities,
    run_pass,
)
from janus_pt.model.best_token import best_tokens
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.transformer import JanusTransformer

CPU_CHUNK_ELEMENTS = 1 << 20
"""Logits that are computed at once on a CPU, however many slots are masked: they stay in its cache."""
DEVICE_CHUNK_ELEMENTS = 1 << 24
"""The same on other devices: 64 MiB in float32."""


@dataclass
class Draft:
    """Outputs of known length, some of whose tokens are still masks.

    Attributes:
        tokens: `[rows, length + frame]`: the prefix (bos), tokens and masks, eos, padding.
        lengths: `[rows]`, without the frame.
        masked: the tokens that must be written, boolean, as `tokens`.
        host_lengths: `lengths` on the host, so that no pass waits for the device to learn a shape.
        host_masked: the number of `masked` tokens of each row, on the host.
    """

    tokens: Tensor
    lengths: Tensor
    masked: Tensor
    host_lengths: list[int]
    host_masked: list[int]


@dataclass
class Refined:
    """A draft whose masks have been written.

    Attributes:
        tokens: `[rows, length]`, without the prefix; eos and padding follow the last token.
        scores: log-probability of each token, same shape; 0 where nothing is written.
        passes: `[rows]`: decoder passes.
    """

    tokens: Tensor
    scores: Tensor
    passes: Tensor

    def without_frame(self, frame: Frame) -> Refined:
        """Without the columns of the prefix and of the longest row's eos."""
        text = slice(len(frame.prefix), -1)
        return Refined(self.tokens[:, text], self.scores[:, text], self.passes)


def all_masked(
    lengths: Tensor, config: ModelConfig, host_lengths: list[int] | None = None
) -> Draft:
    """`bos mask … mask eos`, or the model's own frame, for each of `lengths [rows]`.

    Waits for the device, unless the lengths are known on the host as well.
    """
    if host_lengths is None:
        host_lengths = lengths.tolist()
    prefix = config.target_frame.prefix
    position = torch.arange(max(host_lengths) + len(prefix) + 1, device=lengths.device)
    last = lengths[:, None] + len(prefix)
    masked = (position >= len(prefix)) & (position < last)
    tokens = torch.full_like(position, config.pad_token_id).expand_as(masked)
    tokens = tokens.masked_fill(masked, config.mask_token_id)
    for place, token in enumerate(prefix):
        tokens = tokens.masked_fill(position == place, token)
    tokens = tokens.masked_fill(position == last, config.eos_token_id)
    return Draft(tokens, lengths, masked, host_lengths, host_lengths)


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

    Each pass predicts all masks at once. After pass t of T the k · (T - t) // T least confident of
    the k tokens that were masked at first are masked again; the others keep their scores.

    Args:
        draft: its rows are sources × copies, source by source.
        forbidden: tokens that are never chosen. Scores are of the full distribution all the same.
        adaptive: a source stops when a pass has changed no token of its copies. Whole outputs are
            compared, before anything is masked again, so no mask is ever left.
        rescore_all: every pass writes all of the k tokens, whether masked or not.
        look: called after each pass with the rows' tokens, their scores, and a boolean that is true
            where the pass has written.
    """
    forbidden_mask = vocabulary_mask(forbidden, model.config.vocab_size, draft.tokens.device)
    rows = _start(draft, memory)
    outputs = Refined(rows.tokens.clone(), rows.scores.clone(), rows.passes.clone())
    frame = model.config.target_frame
    shortest = min(draft.host_lengths) + frame.size
    visible = visible_mask(rows.lengths + frame.size, rows.tokens.shape[1], shortest)
    masked, num_masked = rows.writable, draft.host_masked
    num_written = sum(num_masked)
    for done in range(1, iterations + 1):
        # Step 1: write all masks from one pass over everything that is visible.
        written = rows.writable if rescore_all else masked
        hidden = read_visible(model, memory, rows.tokens, visible)
        _write(model, rows, hidden, written, num_written, forbidden_mask)
        if look is not None:
            look(rows.tokens, rows.scores, written)
        # The last pass masks nothing again.
        if done == iterations:
            break
        # Step 2: sources that this pass has not changed leave.
        if adaptive:
            going = _changed_sources(rows, len(memory))
            if not len(going):
                break
            if len(going) < len(memory):
                going_rows = rows_of_sources(going, len(rows.index) // len(memory))
                rows.leave(going_rows, outputs)
                memory = memory.select(going)
                num_masked = [num_masked[row] for row in going_rows.tolist()]
                num_written = sum(num_masked)
                visible = visible_mask(rows.lengths + frame.size, rows.tokens.shape[1])
            rows.previous = rows.tokens.clone()
        # Step 3: mask the least confident tokens again, fewer after each pass.
        count = rows.writable.sum(dim=1) * (iterations - done) // iterations
        confidence = rows.scores.masked_fill(~rows.writable, torch.inf)
        masked = _lowest(confidence, count)
        if not rescore_all:
            num_written = sum(number * (iterations - done) // iterations for number in num_masked)
        rows.tokens.masked_fill_(masked, model.config.mask_token_id)
    rows.put_back(outputs)
    return outputs.without_frame(frame)


@dataclass
class _Rows(ActiveRows):
    """Rows that are being written; `tokens`, `scores` and `passes` as in `Refined`, with the prefix.

    Attributes:
        writable: the tokens that were masked at first, boolean, as `tokens`.
        lengths: `[active]`, without the frame.
        previous: the tokens after the pass before, before any was masked again; as `tokens`.
    """

    tokens: Tensor
    scores: Tensor
    passes: Tensor
    writable: Tensor
    lengths: Tensor
    previous: Tensor


def _start(draft: Draft, memory: SourceMemory) -> _Rows:
    """All rows of a draft before the first pass; the draft itself stays as it is."""
    dtype = score_dtype(memory.length_logits)
    return _Rows(
        index=torch.arange(len(draft.tokens), device=memory.device),
        tokens=draft.tokens.clone(),
        scores=torch.zeros(draft.tokens.shape, dtype=dtype, device=memory.device),
        passes=torch.zeros_like(draft.lengths),
        writable=draft.masked,
        lengths=draft.lengths,
        previous=draft.tokens,
    )


def _write(
    model: JanusTransformer,
    rows: _Rows,
    hidden: Tensor,
    written: Tensor,
    count: int,
    forbidden_mask: Tensor,
) -> None:
    """Write the `count` tokens that are true in `written`, from hidden states of all places."""
    # Their number is known: no shape is made of data, for which the host would wait.
    place = torch.nonzero_static(written.flatten(), size=count)[:, 0]
    slots = hidden.flatten(0, 1).index_select(0, place)
    token, score = most_probable(model, slots, forbidden_mask)
    rows.tokens.view(-1).index_copy_(0, place, token)
    rows.scores.view(-1).index_copy_(0, place, score)
    rows.passes += 1


def _changed_sources(rows: _Rows, num_sources: int) -> Tensor:
    """Active sources of which the newest pass has changed a token in any copy, ascending."""
    row_changed = (rows.tokens != rows.previous).any(dim=1)
    # The copies of a source stop together: they are compared with each other in the end.
    source_changed = row_changed.view(num_sources, -1).any(dim=1)
    return source_changed.nonzero()[:, 0]


def visible_mask(lengths: Tensor, width: int, shortest: int | None = None) -> Tensor | None:
    """True at the first `lengths [rows]` of `width` places, `[rows, 1, 1, width]`.

    None if there is no padding: attention then needs no mask. Waits for the device, unless the
    `shortest` length is known on the host.
    """
    if shortest is None:
        shortest = int(lengths.min())
    if shortest >= width:
        return None
    real = torch.arange(width, device=lengths.device) < lengths[:, None]
    return real[:, None, None, :]


def read_visible(
    model: JanusTransformer, memory: SourceMemory, tokens: Tensor, mask: Tensor | None
) -> Tensor:
    """Hidden states `[rows, width, hidden]` of tokens and masks that all read each other.

    P_NAR's visible part. `mask` is `visible_mask`'s.
    """
    # Every pass reads other tokens: nothing of self-attention can be kept.
    caches = [LayerCache(layer, keep=False) for layer in memory.layers]
    return run_pass(_read_all, model, memory, caches, tokens, mask)


def _read_all(
    model: JanusTransformer,
    caches: list[LayerCache],
    cross_mask: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
) -> Tensor:
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model.decode_step(tokens, positions, tokens.shape[1], mask, cross_mask, caches)


def most_probable(
    model: JanusTransformer, hidden: Tensor, forbidden_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The best token that is not forbidden, and its log-probability, for each hidden state.

    Args:
        hidden: `[slots, hidden]`.
        forbidden_mask: boolean `[vocab]`.
    """

    if model.native is not None:
        best = choose(model, hidden, forbidden_mask)
        return best.tokens, best.scores

    def allowed_log_probs(rows: Tensor) -> Tensor:
        # After the softmax, so that the score is of the full distribution.
        return log_probabilities(model, rows).masked_fill_(forbidden_mask, -torch.inf)

    on_cpu = hidden.device.type == "cpu"
    max_elements = CPU_CHUNK_ELEMENTS if on_cpu else DEVICE_CHUNK_ELEMENTS
    return best_tokens(hidden, allowed_log_probs, len(forbidden_mask), max_elements)


def _lowest(scores: Tensor, count: Tensor) -> Tensor:
    """True at the `count [rows]` lowest of each row of `scores [rows, positions]`."""
    # Stable, so that equal scores are masked from the left, on every device.
    order = scores.argsort(dim=1, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < count[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)
