"""The JANUS objective: P_AR, P_NAR and P_AUX in one packed sequence (METHOD §2, §3)."""

from __future__ import annotations

import numpy as np

from janus_pt.config import ObjectiveConfig
from janus_pt.losses import Terms
from janus_pt.objectives.batch import Example, IntArray
from janus_pt.slots import CAUSAL, MASK_RANK, MASKED, NEVER, SlotArray, make_slots

STREAMS = ("ar", "nar", "aux")
PAIRS = (("ar", "aux"), ("aux", "nar"), ("ar", "nar"))


def terms(config: ObjectiveConfig) -> Terms:
    """All terms of the objective; those of weight 0 are reported but not trained on."""
    return Terms(STREAMS, PAIRS, config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`."""
    return [config.ce_ar, config.ce_nar, config.ce_aux, config.kl_ar_aux, config.kl_aux_nar, config.kl_ar_nar]


def causal_slots(target: IntArray, mask_token_id: int, position_offset: int) -> tuple[SlotArray, SlotArray]:
    """AR contents and queries of `target [n + 2]`, n + 1 each: query t predicts `target[t + 1]`.

    Content t and its query sit at position t + `position_offset`.
    """
    order = np.arange(len(target) - 1)
    positions = order + position_offset
    content = make_slots(target[:-1], positions, CAUSAL, rank=order, until=order + 1)
    return content, make_slots(mask_token_id, positions, CAUSAL, until=order + 1)


def masked_slots(target: IntArray, masked: IntArray, mask_token_id: int) -> tuple[SlotArray, SlotArray]:
    """NAR contents and AUX queries for the sorted positions `masked [k]` of `target`.

    Contents: the unmasked targets, k mask symbols (they predict for P_NAR), the k true tokens. Queries: k mask
    symbols that read the true tokens before their own (P_AUX). On the rank line the unmasked targets lie at 0 and
    the j-th true token at j + 1; mask symbols lie at MASK_RANK + j.
    """
    positions = np.arange(len(target))
    rank = np.arange(len(masked))
    keep = np.ones(len(target), dtype=bool)
    keep[masked] = False
    masks = MASK_RANK + rank
    unmasked = make_slots(target[keep], positions[keep], MASKED, 0, until=1, start=MASK_RANK, stop=NEVER)
    mask_symbols = make_slots(mask_token_id, masked, MASKED, masks, until=1, start=MASK_RANK, stop=NEVER)
    true_part = make_slots(target[masked], masked, MASKED, rank + 1, until=rank + 2, start=masks + 1, stop=NEVER)
    queries = make_slots(mask_token_id, masked, MASKED, until=rank + 1, start=masks, stop=NEVER)
    return np.concatenate((unmasked, mask_symbols, true_part)), queries


def example(source: IntArray, target: IntArray, masked: IntArray, mask_token_id: int, position_offset: int) -> Example:
    """All three streams of one pair. `target` has bos and eos, `masked` holds neither.

    Targets are ordered masked first, so that NAR and AUX predict a prefix of what AR predicts.
    """
    ar_content, ar_query = causal_slots(target, mask_token_id, position_offset)
    nar_content, aux_query = masked_slots(target, masked, mask_token_id)
    content = np.concatenate((ar_content, nar_content))
    k, kept = len(masked), len(target) - len(masked)
    unmasked = np.setdiff1d(np.arange(1, len(target)), masked, assume_unique=True)
    predicted = np.concatenate((masked, unmasked))
    predict = {
        "ar": len(content) + predicted - 1,
        "nar": len(ar_content) + kept + np.arange(k),
        "aux": len(content) + len(ar_query) + np.arange(k),
    }
    queries = np.concatenate((ar_query, aux_query))
    return Example(source, content, queries, target[predicted], predict, len(target))
