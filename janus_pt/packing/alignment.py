"""Which slots write which tokens where no slot has a token of its own: what losses over alignments need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.example import IntArray


@dataclass(frozen=True)
class Alignment:
    """The rows of an aligned stream, and the classes they choose from, sample by sample.

    Counts are numbers of the host: losses then need not wait for the device to know a shape.

    rows: `[samples, most rows]`: numbers of the stream's rows, in order; -1 behind a sample's own.
    samples: `[rows]`: the sample of each row.
    classes: `[samples, 1 + most labels]`: the blank symbol, then the tokens that the rows write in
        their order; the blank again behind a sample's own.
    row_counts, label_counts: of each sample; the blank is no label.
    """

    rows: Tensor
    samples: Tensor
    classes: Tensor
    row_counts: tuple[int, ...]
    label_counts: tuple[int, ...]


def align(row_counts: Sequence[int], classes: Sequence[IntArray]) -> Alignment:
    """The alignment of samples whose rows follow each other.

    Args:
        classes: of each sample, the blank first.
    """
    counts = np.asarray(row_counts)
    first_of_sample = np.cumsum(counts) - counts
    column = np.arange(counts.max())
    is_row = column < counts[:, None]
    rows = np.where(is_row, first_of_sample[:, None] + column, -1)
    # Behind a sample's own classes the blank, which is a token in any case.
    table = np.tile(classes[0][:1], (len(counts), max(map(len, classes))))
    for sample, own in enumerate(classes):
        table[sample, : len(own)] = own
    return Alignment(
        rows=torch.from_numpy(rows),
        samples=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        classes=torch.from_numpy(table.astype(np.int64)),
        row_counts=tuple(counts.tolist()),
        label_counts=tuple(len(own) - 1 for own in classes),
    )
