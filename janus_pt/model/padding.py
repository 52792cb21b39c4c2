"""From the packed row to samples side by side, and back: what attention needs on devices without block masks.

In both directions rows of one head's size are copied, and the backward pass of each direction is the
other. Neither costs more than the copies by which heads are split and joined anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from janus_pt.packing.padded import PaddedLayout


def split_samples(x: Tensor, layout: PaddedLayout) -> tuple[Tensor, ...]:
    """`x [row, heads, size]` to `[heads, samples, longest, size]` for each part of `layout`.

    Padding has finite numbers, of any slot.
    """
    parts: tuple[Tensor, ...] = _Split.apply(x, layout)
    return parts


def join_samples(parts: tuple[Tensor, ...], layout: PaddedLayout) -> Tensor:
    """The inverse of `split_samples`; zero where the row has padding."""
    row: Tensor = _Join.apply(layout, *parts)
    return row


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: PaddedLayout) -> tuple[Tensor, ...]:
        ctx.layout = layout
        return _split(x, layout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Each slot is in one place: what `index_select` would add up is a copy here.
        return _join(gradients, ctx.layout), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: PaddedLayout, *parts: Tensor) -> Tensor:
        ctx.layout = layout
        return _join(parts, layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = _split(gradient, ctx.layout)
        for part, indices in zip(parts, ctx.layout.indices, strict=True):
            # `_split` copies some slot to padding, whose gradient is none of padding's.
            part.masked_fill_((indices < 0)[..., None], 0)
        return None, *parts


def _split(x: Tensor, layout: PaddedLayout) -> tuple[Tensor, ...]:
    row, heads, size = x.shape
    # A line is one head of one slot: slot i's head h is line i · heads + h.
    lines = x.reshape(row * heads, size)
    head = torch.arange(heads, device=x.device)[:, None]
    parts = []
    for indices in layout.indices:
        # Padding, -1, copies slot 0: finite, and cheaper than filling in zeros.
        slots = indices.flatten().clamp(min=0)
        part = lines.index_select(0, (slots * heads + head).flatten())
        parts.append(part.view(heads, *indices.shape, size))
    return tuple(parts)


def _join(parts: tuple[Tensor, ...], layout: PaddedLayout) -> Tensor:
    heads, size = parts[0].shape[0], parts[0].shape[-1]
    flat = [part.reshape(heads, -1, size) for part in parts]
    # `inverse_indices` count through all parts, one after another.
    joined = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
    first_line = torch.arange(heads, device=joined.device) * joined.shape[1]
    lines = (layout.inverse_indices[:, None] + first_line).flatten()
    row = joined.reshape(-1, size).index_select(0, lines).view(-1, heads, size)
    return row.index_fill_(0, layout.padding, 0.0)
