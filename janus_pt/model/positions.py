"""All kinds of positions, by the name that `model.positions` gives them.

A kind says where a slot stands in one of two places: in a table, whose rows are joined with the
token embeddings, or in a rotation of the queries and keys of self-attention.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig

OFFSET = 2
"""fairseq's tables give position p the row p + 2; kept, so that its models and ours agree."""
LONGEST_WAVE = 10000.0
"""The slowest sine, or rotation, has a wave of 2π times as many positions (Vaswani et al. 2017)."""


@dataclass(frozen=True)
class Rotation:
    """Angles by which heads are rotated, `[batch, 1, slots, head_size / 2]` each."""

    cos: Tensor
    sin: Tensor

    def narrow(self, start: int, stop: int) -> Rotation:
        """The angles of the slots from `start` up to `stop`."""
        return Rotation(self.cos[:, :, start:stop], self.sin[:, :, start:stop])

    def apply(self, heads: Tensor) -> Tensor:
        """Rotate `heads [batch, heads, slots, head_size]`: element i with element i + head_size / 2."""
        first, second = heads.chunk(2, dim=-1)
        turned_first = first * self.cos - second * self.sin
        turned_second = second * self.cos + first * self.sin
        return torch.cat((turned_first, turned_second), dim=-1)


class Positions(ABC):
    """A kind of positions."""

    @abstractmethod
    def table(self, config: ModelConfig) -> nn.Module | None:
        """From positions `[...]` to the vectors `[..., hidden]` joined with token embeddings, if any are."""

    def rotation(
        self, config: ModelConfig, positions: Tensor, dtype: torch.dtype
    ) -> Rotation | None:
        """The rotation of queries and keys at `positions [batch, slots]`, if this kind has one."""
        return None


class SinusoidalPositions(nn.Module):
    """Position table of tensor2tensor and fairseq: all sines, then all cosines. Computed, so in no file."""

    def __init__(self, rows: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(rows, hidden_size), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute the table; needed again after the table has got new memory."""
        table = self.get_buffer("table")
        rows, hidden_size = table.shape
        half = hidden_size // 2
        # In float64: far positions times small rates lose the angle in float32.
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        rates = torch.exp(exponents * -math.log(LONGEST_WAVE))
        numbers = torch.arange(OFFSET, rows + OFFSET, dtype=torch.float64)
        angles = numbers[:, None] * rates
        table.copy_(torch.cat((angles.sin(), angles.cos()), dim=1))

    def forward(self, positions: Tensor) -> Tensor:
        """Rows of the table, `[..., hidden]`."""
        return self.get_buffer("table")[positions]


class MarianPositions(SinusoidalPositions):
    """Marian's table: other rates, and from position 0."""

    def fill(self) -> None:
        """Compute the table."""
        table = self.get_buffer("table")
        rows, hidden_size = table.shape
        # An odd size has one sine more than cosines.
        pairs = torch.arange((hidden_size + 1) // 2, dtype=torch.float64)
        rates = LONGEST_WAVE ** (-2 * pairs / hidden_size)
        angles = torch.arange(rows, dtype=torch.float64)[:, None] * rates
        cosines = angles[:, : hidden_size // 2].cos()
        table.copy_(torch.cat((angles.sin(), cosines), dim=1))


class Learned(Positions):
    """A trained table."""

    def table(self, config: ModelConfig) -> nn.Module:
        """A row a position."""
        return nn.Embedding(config.max_positions, config.hidden_size)


class Sinusoidal(Positions):
    """A computed table."""

    def table(self, config: ModelConfig) -> nn.Module:
        """Sines and cosines of the position."""
        return SinusoidalPositions(config.max_positions, config.hidden_size)


class Marian(Positions):
    """A computed table, Marian's."""

    def table(self, config: ModelConfig) -> nn.Module:
        """Sines and cosines of the position."""
        return MarianPositions(config.max_positions, config.hidden_size)


class Rotary(Positions):
    """Rotations of queries and keys, so that scores depend on distances (Su et al. 2021, "RoFormer").

    In the encoder's and the decoder's self-attention. Not in cross-attention: a distance between a
    position of the source and one of the target means nothing.
    """

    def table(self, config: ModelConfig) -> None:
        """None: nothing is added to the embeddings."""

    def rotation(self, config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Angles `position · LONGEST_WAVE^(-2i / head_size)` for i below `head_size / 2`."""
        head_size = config.head_size
        # Angles in float32 at least: bfloat16 does not tell neighbouring positions above 256 apart.
        precise = torch.promote_types(dtype, torch.float32)
        pairs = torch.arange(head_size // 2, dtype=precise, device=positions.device)
        rates = LONGEST_WAVE ** (-2 * pairs / head_size)
        # [batch, 1, slots, head_size / 2]: the same for all heads.
        angles = positions[:, None, :, None].to(precise) * rates
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


POSITIONS: dict[str, Positions] = {
    "learned": Learned(),
    "sinusoidal": Sinusoidal(),
    "marian": Marian(),
    "rotary": Rotary(),
}


def make_table(config: ModelConfig) -> nn.Module | None:
    """The position table of one stack, if the configured kind has one."""
    return POSITIONS[config.positions].table(config)


def make_rotation(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
    """The rotation of heads at `positions [batch, slots]`, in numbers of `dtype`, if the kind has one."""
    return POSITIONS[config.positions].rotation(config, positions, dtype)


def fill_tables(model: nn.Module) -> None:
    """Compute every table of `model` that is in no file."""
    for module in model.modules():
        if isinstance(module, SinusoidalPositions):
            module.fill()


def restore_tables(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the computed tables of a model from the meta device memory on the CPU, and their numbers."""
    for module in model.modules():
        if isinstance(module, SinusoidalPositions):
            # Computed in float32 first, as in training: then rounding is the same.
            table = torch.empty_like(module.get_buffer("table"), device="cpu", dtype=torch.float32)
            module.register_buffer("table", table, persistent=False)
            module.fill()
            module.to(dtype)
