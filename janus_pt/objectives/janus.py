"""The JANUS objective: P_AR, P_NAR and P_AUX in one packed sequence (METHOD §2, §3)."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.example import Example, IntArray, SlotArray
from janus_pt.packing.slots import CAUSAL, MASK_RANK, MASKED, NEVER, make_slots

STREAMS = ("ar", "nar", "aux")
PAIRS = (("ar", "aux"), ("aux", "nar"), ("ar", "nar"))


def terms(config: ObjectiveConfig) -> Terms:
    """A cross-entropy for each distribution and a divergence for each two of them."""
    return Terms(STREAMS, PAIRS, config.label_smoothing)


def causal_slots(target: IntArray, model: ModelConfig) -> tuple[SlotArray, SlotArray]:
    """AR contents and queries of `target [n + 2]`, n + 1 each: query t predicts `target[t + 1]`.

    Content t and its query sit at position t + `model.ar_position_offset`. With the `ar_stream`
    "content" there are no queries."""
    order = np.arange(len(target) - 1)
    positions = order + model.ar_position_offset
    content = make_slots(target[:-1], positions, CAUSAL, rank=order, until=order + 1)
    query = make_slots(model.mask_token_id, positions, CAUSAL, until=order + 1)
    if model.ar_stream == "content":
        query = query[:0]
    return content, query


def expected_causal_slots(target: int, model: ModelConfig) -> tuple[int, int]:
    """Numbers of the contents and queries that `causal_slots` makes of `target` tokens with bos and
    eos."""
    content = target - 1
    queries = content if model.ar_stream == "query" else 0
    return content, queries


def visible_slots(target: IntArray, masked: IntArray, mask_token_id: int) -> SlotArray:
    """The unmasked targets, then a mask symbol for each of the sorted positions `masked [k]`; all
    read each other.

    On the rank line the unmasked targets lie at 0, mask symbols at MASK_RANK + j.
    """
    k = len(masked)
    keep = np.ones(len(target), dtype=bool)
    keep[masked] = False
    tokens = np.concatenate((target[keep], np.full(k, mask_token_id)))
    positions = np.concatenate((np.flatnonzero(keep), masked))
    unmasked_ranks = np.zeros(len(target) - k, dtype=int)
    ranks = np.concatenate((unmasked_ranks, MASK_RANK + np.arange(k)))
    # `until` 1 reads the unmasked targets but no true token, whose ranks begin at 1
    # (`masked_slots`).
    return make_slots(tokens, positions, MASKED, ranks, until=1, start=MASK_RANK, stop=NEVER)


def masked_slots(
    target: IntArray, masked: IntArray, mask_token_id: int
) -> tuple[SlotArray, SlotArray]:
    """NAR contents and AUX queries for the sorted positions `masked [k]` of `target`.

    Contents: `visible_slots`, whose mask symbols predict for P_NAR, and the k true tokens, at j + 1
    on the rank line. Queries: k mask symbols that read the true tokens before their own (P_AUX)."""
    rank = np.arange(len(masked))
    masks = MASK_RANK + rank
    # Number j reads the mask symbols from its own on (a query) or after its own (a true token),
    # never those before: the true tokens stand there in their place.
    true_part = make_slots(
        target[masked], masked, MASKED, rank + 1, until=rank + 2, start=masks + 1, stop=NEVER
    )
    queries = make_slots(mask_token_id, masked, MASKED, until=rank + 1, start=masks, stop=NEVER)
    return np.concatenate((visible_slots(target, masked, mask_token_id), true_part)), queries


def masked_first(target: IntArray, masked: IntArray) -> IntArray:
    """The predicted positions, 1 to the last, masked ones first: masked streams predict a prefix of
    them."""
    predicted = np.arange(1, len(target))
    unmasked = np.setdiff1d(predicted, masked, assume_unique=True)
    return np.concatenate((masked, unmasked))


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """All three streams of one pair.

    Targets are ordered masked first, so that NAR and AUX predict a prefix of what AR predicts.
    """
    target, masked = pair.target, pair.masked
    ar_content, ar_query = causal_slots(target, model)
    nar_content, aux_query = masked_slots(target, masked, model.mask_token_id)
    content = np.concatenate((ar_content, nar_content))
    queries = np.concatenate((ar_query, aux_query))
    predicted = masked_first(target, masked)
    order = np.arange(len(masked))
    # Slots are counted contents first. Without AR queries the AR contents, which come first,
    # predict.
    first_ar = len(content) if len(ar_query) else 0
    first_mask = len(ar_content) + len(target) - len(masked)
    first_aux = len(content) + len(ar_query)
    predict = {
        "ar": first_ar + predicted - 1,
        "nar": first_mask + order,
        "aux": first_aux + order,
    }
    return Example(pair.source, content, queries, target[predicted], predict, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """A masked token has three slots of the masked side: its mask symbol, its true token and its
    AUX query."""
    content, queries = expected_causal_slots(target, model)
    return SlotCounts(
        causal_content=content,
        causal_queries=queries,
        masked_content=target + masked,
        masked_queries=masked,
        predicted=content + 2 * masked,
    )


OBJECTIVE = Objective(terms, example, expected_slots)
