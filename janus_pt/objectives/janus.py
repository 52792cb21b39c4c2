"""The JANUS objective: P_AR, P_NAR and P_AUX in one packed sequence (METHOD §2, §3)."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.batch import Example, IntArray
from janus_pt.packing.slots import CAUSAL, MASK_RANK, MASKED, NEVER, SlotArray, make_slots

STREAMS = ("ar", "nar", "aux")
PAIRS = (("ar", "aux"), ("aux", "nar"), ("ar", "nar"))


def terms(config: ObjectiveConfig) -> Terms:
    """All terms of the objective; those of weight 0 are reported but not trained on."""
    return Terms(STREAMS, PAIRS, config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last."""
    cross_entropies = [config.ce_ar, config.ce_nar, config.ce_aux]
    return [*cross_entropies, config.kl_ar_aux, config.kl_aux_nar, config.kl_ar_nar, config.length]


def causal_slots(
    target: IntArray, mask_token_id: int, position_offset: int, ar_stream: str = "query"
) -> tuple[SlotArray, SlotArray]:
    """AR contents and queries of `target [n + 2]`, n + 1 each: query t predicts `target[t + 1]`.

    Content t and its query sit at position t + `position_offset`. With the `ar_stream` "content" there are no queries.
    """
    order = np.arange(len(target) - 1)
    positions = order + position_offset
    content = make_slots(target[:-1], positions, CAUSAL, rank=order, until=order + 1)
    query = make_slots(mask_token_id, positions, CAUSAL, until=order + 1)
    return content, query if ar_stream == "query" else query[:0]


def visible_slots(target: IntArray, masked: IntArray, mask_token_id: int) -> SlotArray:
    """The unmasked targets, then a mask symbol for each of the sorted positions `masked [k]`; all read each other.

    On the rank line the unmasked targets lie at 0, mask symbols at MASK_RANK + j.
    """
    keep = np.ones(len(target), dtype=bool)
    keep[masked] = False
    tokens = np.concatenate((target[keep], np.full(len(masked), mask_token_id)))
    positions = np.concatenate((np.flatnonzero(keep), masked))
    ranks = np.concatenate(
        (np.zeros(len(target) - len(masked), dtype=int), MASK_RANK + np.arange(len(masked)))
    )
    return make_slots(tokens, positions, MASKED, ranks, until=1, start=MASK_RANK, stop=NEVER)


def masked_slots(
    target: IntArray, masked: IntArray, mask_token_id: int
) -> tuple[SlotArray, SlotArray]:
    """NAR contents and AUX queries for the sorted positions `masked [k]` of `target`.

    Contents: `visible_slots`, whose mask symbols predict for P_NAR, and the k true tokens, at j + 1 on the rank line.
    Queries: k mask symbols that read the true tokens before their own (P_AUX).
    """
    rank = np.arange(len(masked))
    masks = MASK_RANK + rank
    true_part = make_slots(
        target[masked], masked, MASKED, rank + 1, until=rank + 2, start=masks + 1, stop=NEVER
    )
    queries = make_slots(mask_token_id, masked, MASKED, until=rank + 1, start=masks, stop=NEVER)
    return np.concatenate((visible_slots(target, masked, mask_token_id), true_part)), queries


def masked_first(target: IntArray, masked: IntArray) -> IntArray:
    """The positions that are predicted, 1 to the last, masked ones first: masked streams predict a prefix of them."""
    return np.concatenate(
        (masked, np.setdiff1d(np.arange(1, len(target)), masked, assume_unique=True))
    )


def example(
    source: IntArray,
    target: IntArray,
    masked: IntArray,
    mask_token_id: int,
    position_offset: int,
    ar_stream: str = "query",
) -> Example:
    """All three streams of one pair. `target` has bos and eos, `masked` holds neither.

    Targets are ordered masked first, so that NAR and AUX predict a prefix of what AR predicts.
    """
    ar_content, ar_query = causal_slots(target, mask_token_id, position_offset, ar_stream)
    nar_content, aux_query = masked_slots(target, masked, mask_token_id)
    content = np.concatenate((ar_content, nar_content))
    k, kept = len(masked), len(target) - len(masked)
    predicted = masked_first(target, masked)
    predict = {
        "ar": predicted - 1 + len(content) * (len(ar_query) > 0),
        "nar": len(ar_content) + kept + np.arange(k),
        "aux": len(content) + len(ar_query) + np.arange(k),
    }
    queries = np.concatenate((ar_query, aux_query))
    return Example(source, content, queries, target[predicted], predict, len(target))
