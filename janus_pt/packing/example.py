"""One sample as numpy arrays, before it is packed with others; and the array types of the room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BOUNDARY_TOKENS = 2
"""bos and eos, which every source and every target has beside its own tokens."""

IntArray = np.ndarray[Any, np.dtype[Any]]
"""Integers of any width: token ids, positions, indices."""
SlotArray = np.ndarray[Any, np.dtype[np.int32]]
"""Slots `[length, 7]`; the columns are `packing.slots.FIELDS`."""


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
    length: target tokens with bos and eos."""

    source: IntArray
    content: SlotArray
    query: SlotArray
    targets: IntArray
    predict: Mapping[str, IntArray]
    length: int
