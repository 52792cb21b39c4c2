"""From the packed row to samples side by side, and back: what attention needs on devices without block masks.

Both ways rows of one head's size are copied, and the backward pass of each way is the other. Neither costs more than
the copies by which heads are split and joined anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from janus_pt.packing.padded import PaddedLayout


def split_samples(x: Tensor, grids: PaddedLayout) -> tuple[Tensor, ...]:
    """`x [row, heads, size]` to one `[heads, samples, longest, size]` for each grid; what padding holds is finite."""
    split: tuple[Tensor, ...] = _Split.apply(x, grids)
    return split


def join_samples(parts: tuple[Tensor, ...], grids: PaddedLayout) -> Tensor:
    """The inverse of `split_samples`; zero where the row has padding."""
    joined: Tensor = _Join.apply(grids, *parts)
    return joined


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grids: PaddedLayout) -> tuple[Tensor, ...]:
        ctx.grids = grids
        return _split(x, grids)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _join(gradients, ctx.grids), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grids: PaddedLayout, *parts: Tensor) -> Tensor:
        ctx.grids = grids
        return _join(parts, grids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = _split(gradient, ctx.grids)
        for part, places in zip(parts, ctx.grids.indices, strict=True):
            part.masked_fill_((places < 0)[..., None], 0)
        return None, *parts


def _split(x: Tensor, grids: PaddedLayout) -> tuple[Tensor, ...]:
    row, heads, size = x.shape
    lines, head = x.reshape(row * heads, size), torch.arange(heads, device=x.device)[:, None]
    return tuple(
        lines.index_select(0, (places.flatten().clamp(min=0) * heads + head).flatten()).view(
            heads, *places.shape, size
        )
        for places in grids.indices
    )


def _join(parts: tuple[Tensor, ...], grids: PaddedLayout) -> Tensor:
    heads, size = parts[0].shape[0], parts[0].shape[-1]
    flat = [part.reshape(heads, -1, size) for part in parts]
    lines = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
    head = torch.arange(heads, device=lines.device) * lines.shape[1]
    row = (
        lines.reshape(-1, size)
        .index_select(0, (grids.inverse_indices[:, None] + head).flatten())
        .view(-1, heads, size)
    )
    return row.index_fill_(0, grids.padding, 0.0)
