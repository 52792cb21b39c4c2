"""The fixed position table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

OFFSET = 2
"""fairseq's tables give position p the row p + 2; kept, so that its models and ours agree."""


class SinusoidalPositions(nn.Module):
    """Position table as in tensor2tensor and fairseq: all sines, then all cosines. Computed, so in no file."""

    def __init__(self, rows: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(rows, hidden_size), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute the table; needed again after its memory was."""
        table = self.get_buffer("table")
        rows, half = table.shape[0], table.shape[1] // 2
        rates = torch.exp(
            torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / (half - 1))
        )
        angles = torch.arange(OFFSET, rows + OFFSET, dtype=torch.float64)[:, None] * rates
        table.copy_(torch.cat((angles.sin(), angles.cos()), dim=1))

    def forward(self, positions: Tensor) -> Tensor:
        """Rows of the table, `[..., hidden]`."""
        return self.get_buffer("table")[positions]
