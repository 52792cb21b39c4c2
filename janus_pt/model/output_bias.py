"""The output bias: a number that is added to each token's score.

Losses read the token table as a matrix `[vocab, hidden]`. A bias stands behind its rows as columns
more, the first of which meets a constant 1 in the hidden states: losses need know nothing of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.model.layer_factory import mark_sharded

COLUMNS = 8
"""Columns that stand for a bias, all but the first zero: matrix units like multiples of this."""


class OutputBias(nn.Module):
    """A number for each token; tensor-parallel ranks share it out as they do the table's rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(rows))
        mark_sharded(self.bias, 0)


def append_bias(table: Tensor, bias: Tensor) -> Tensor:
    """`[vocab, hidden + COLUMNS]`: the table's rows, each with its bias behind it."""
    columns = F.pad(bias[:, None], (0, COLUMNS - 1))
    return torch.cat((table, columns), dim=1)


def match_bias(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden [..., hidden]` as wide as the output's `weight`: as it is, or with a 1 and zeros."""
    extra = weight.shape[1] - hidden.shape[-1]
    if extra == 0:
        return hidden
    with_one = F.pad(hidden, (0, 1), value=1.0)
    return F.pad(with_one, (0, extra - 1))
