"""One sample as numpy arrays, before it is packed with others; and the array types of the room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_pt.config.schema import Frame

BOUNDARY_TOKENS = 2
"""bos and eos, which lengths of corpora count; noise is drawn for a text with as many.

A model's own special tokens are its `Frame`s."""

IntArray = np.ndarray[Any, np.dtype[Any]]
"""Integers of any width: token ids, positions, indices."""
SlotArray = np.ndarray[Any, np.dtype[np.int32]]
"""Slots `[length, 7]`; the columns are `packing.slots.FIELDS`."""


def framed(tokens: IntArray | Sequence[int], frame: Frame) -> IntArray:
    """A text's ids with the special ones before and behind them, 1-d."""
    whole = np.concatenate((frame.prefix, tokens, frame.suffix))
    return whole.astype(np.int32)


@dataclass(frozen=True)
class Example:
    """One sample of an objective.

    source: token ids `[length]`.
    content, query: slots `[n, 7]`. Only content slots are keys.
    targets: the predicted tokens `[rows]`. They are ordered so that every stream predicts a prefix
    of them, or a
        suffix if the objective's terms name it among `suffix_streams`.
    predict: for each stream, in the order of the objective's `terms.streams`, the indices of its
    predicting slots
        `[rows of the stream]`. Content slots count from 0, query slots follow.
    length: target tokens with bos and eos.
    classes: of a stream that is aligned with its tokens (`Terms.aligned_stream`): the blank symbol, then
        the tokens `[1 + tokens]` that its slots write in order. `predict` has its slots, any number
        of them."""

    source: IntArray
    content: SlotArray
    query: SlotArray
    targets: IntArray
    predict: Mapping[str, IntArray]
    length: int
    classes: IntArray | None = None
