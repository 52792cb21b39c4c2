"""Mask-predict: decoding in a fixed number of passes (Ghazvininejad et al. 2019), with P_NAR."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from janus_pt.config import ModelConfig, Positive
from janus_pt.generate.types import Hypotheses, LengthOptions, is_one_of, score_dtype
from janus_pt.model.janus import JanusTransformer
from janus_pt.slots import MASKED, PADDING, POSITION, SEGMENT, TOKEN, Slots, Source

CHUNK_ELEMENTS = 1 << 24
"""Logits computed at once: 64 MiB in float32, however many slots are masked."""
BOUNDARY = 2
"""bos and eos: what a target of the length head's classes has more than an output."""


class MaskPredictOptions(LengthOptions):
    """Options of mask-predict."""

    iterations: Positive = 4
    """Decoder passes."""
    length_beam: Positive = 1
    """Lengths that are tried: the most probable one and its neighbours."""


def never_generated(config: ModelConfig) -> set[int]:
    """Symbols that have no place inside an output."""
    c = config
    return {c.pad_token_id, c.bos_token_id, c.eos_token_id, c.unk_token_id, c.mask_token_id}


@torch.inference_mode()
def mask_predict(model: JanusTransformer, source: Source, options: MaskPredictOptions) -> Hypotheses:
    """One hypothesis for each of `length_beam` lengths, best first by mean log-probability of its tokens."""
    config = model.config
    longest = options.longest(config.max_positions - BOUNDARY)
    encoder_out = model.encode(source)
    lengths = candidate_lengths(
        model.length_logits(encoder_out, source), options.length_beam, options.min_length, longest
    )
    tokens, scores = refine(model, source, encoder_out, lengths, options.iterations, never_generated(config))
    passes = torch.full_like(lengths[:, 0], options.iterations)
    return Hypotheses(tokens, scores, lengths, mean_score(scores, lengths), passes).best_first()


def candidate_lengths(logits: Tensor, length_beam: int, shortest: int, longest: int) -> Tensor:
    """Output lengths `[batch, length_beam]` around the best class of `logits [batch, classes]`, within the bounds."""
    offsets = torch.arange(length_beam, device=logits.device) - length_beam // 2
    best = logits.argmax(dim=1, keepdim=True) - BOUNDARY
    return (best.clamp(shortest, longest) + offsets).clamp(shortest, longest)


def mean_score(token_scores: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-probability of a hypothesis' tokens; -inf for an empty one, which is nothing to prefer."""
    mean = token_scores.sum(dim=-1) / lengths.clamp(min=1)
    return mean.masked_fill(lengths == 0, -torch.inf)


def refine(
    model: JanusTransformer,
    source: Source,
    encoder_out: Tensor,
    lengths: Tensor,
    iterations: int,
    forbidden: Collection[int],
) -> tuple[Tensor, Tensor]:
    """Write outputs of the given lengths in `iterations` decoder passes, from masks alone.

    Each pass predicts all masks at once; after pass t of T the n · (T - t) // T least confident of the n tokens are
    masked again, the others keep their scores.

    Args:
        lengths: `[batch, candidates]`, tokens of each output.
        forbidden: tokens that are never chosen; scores are of the full distribution all the same.

    Returns:
        Tokens, padded, and their log-probabilities, 0 at padding: each `[batch, candidates, longest]`.
    """
    source, encoder_out = _repeat(source, encoder_out, lengths.shape[1])
    rows = lengths.flatten()
    slots = _all_masked(rows, model.config)
    tokens = slots[TOKEN]
    masked = inside = tokens == model.config.mask_token_id
    scores = torch.zeros(tokens.shape, dtype=score_dtype(encoder_out), device=tokens.device)
    barred = is_one_of(forbidden, model.config.vocab_size, tokens.device)
    for done in range(1, iterations + 1):
        hidden = model.decode(slots, encoder_out, source)
        best, score = _most_probable(model, hidden[masked], barred)
        tokens[masked], scores[masked] = best.to(tokens.dtype), score
        if done < iterations:
            masked = _lowest(scores.masked_fill(~inside, torch.inf), rows * (iterations - done) // iterations)
            tokens.masked_fill_(masked, model.config.mask_token_id)
    tokens = tokens.masked_fill(~inside, model.config.pad_token_id)
    return tokens[:, 1:-1].unflatten(0, lengths.shape), scores[:, 1:-1].unflatten(0, lengths.shape)


def _repeat(source: Source, encoder_out: Tensor, times: int) -> tuple[Source, Tensor]:
    tokens, positions, samples, encoder_out = (
        x.repeat_interleave(times, dim=0) for x in (source.tokens, source.positions, source.samples, encoder_out)
    )
    return Source(tokens, positions, samples), encoder_out


def _all_masked(lengths: Tensor, config: ModelConfig) -> Slots:
    """`bos mask … mask eos` for each of `lengths [rows]`: the visible part of the masked segment, in the order of
    positions. There every slot reads every other, so that all may have one rank, as padding has."""
    place = torch.arange(int(lengths.max()) + BOUNDARY, device=lengths.device)
    last = lengths[:, None] + 1
    token = torch.full_like(place, config.mask_token_id).where(place < last, config.pad_token_id)
    token = token.masked_fill(place == 0, config.bos_token_id).masked_fill(place == last, config.eos_token_id)
    table = torch.from_numpy(PADDING).to(lengths.device).repeat(*token.shape, 1)
    table[..., TOKEN] = token.to(table.dtype)
    table[..., POSITION] = place.where(place <= last, 0)
    table[..., SEGMENT] = torch.full_like(token, MASKED).where(place <= last, -1)
    return Slots(table, table.shape[1])


def _most_probable(model: JanusTransformer, hidden: Tensor, barred: Tensor) -> tuple[Tensor, Tensor]:
    """The best token that is not barred, and its log-probability, for each of `hidden [slots, hidden]`."""
    parts = []
    for part in hidden.split(max(1, CHUNK_ELEMENTS // len(barred))):
        logits = model.logits(part)
        logits = logits.to(score_dtype(logits))
        best = logits.masked_fill(barred, -torch.inf).max(dim=-1)
        parts.append((best.indices, best.values - logits.logsumexp(dim=-1)))
    tokens, scores = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(scores)


def _lowest(scores: Tensor, count: Tensor) -> Tensor:
    """True at the `count [rows]` lowest of each row of `scores [rows, places]`."""
    order = scores.argsort(dim=1, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < count[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)
