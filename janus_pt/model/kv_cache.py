"""What one decoder layer keeps while sentences are decoded: keys and values of the source and of slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, heads, keys, head_size]`."""
MIN_CAPACITY = 32
"""Content slots that a cache has room for at first."""


class LayerCache:
    """Keys and values that one decoder layer reads again in every step.

    `memory`: keys and values of the sources, `[sources, heads, source, head_size]`. Decoding rows are
    sources × copies, source by source; copies share their source's memory, which never moves with them.

    The content slots' keys and values are kept only if `keep` is set. They lie in one buffer
    `[rows, heads, capacity, head_size]` each, which doubles when it is full.
    """

    def __init__(self, memory: KeysValues, keep: bool = True) -> None:
        self.memory = memory
        self.write_positions: int | Tensor | tuple[Tensor, Tensor] = 0
        """Where the next content slots go: from this position of the buffer on in all rows, also as a tensor of one
        number; or, as one index of rows `[rows, 1]` and one of positions `[rows, slots]`, to places of their own."""
        self.reach: int | Tensor = 0
        """Positions of the buffer that are read, a mask permitting: all that may have been written."""
        self._keep = keep
        _, heads, _, head_size = memory[0].shape
        self._keys = memory[0].new_empty(0, heads, 0, head_size)
        self._values = self._keys

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that a pass reads and writes: the memory, and the buffers if content slots are kept."""
        return (*self.memory, self._keys, self._values) if self._keep else self.memory

    @property
    def buffers(self) -> KeysValues | None:
        """The buffers of the content slots' keys and values, beyond `reach` as well; None if none are kept."""
        return (self._keys, self._values) if self._keep else None

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> LayerCache:
        """A cache on the `tensors` of another one, which it writes to."""
        keys, values, *buffers = tensors
        cache = cls((keys, values), keep=bool(buffers))
        if buffers:
            cache._keys, cache._values = buffers
        return cache

    def reserve(self, rows: int, reach: int) -> None:
        """Make room for `reach` positions in each of `rows`, and let all of them be read."""
        self.reach = reach
        if reach > self._keys.shape[2]:
            self._grow(rows, reach)

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Put the new content slots' keys and values at `write_positions`; returns all that are in reach.

        There must be room: see `reserve`.
        """
        if not self._keep:
            return keys, values
        if not isinstance(self.write_positions, tuple):
            # All rows write side by side: a plain copy, which needs no index on the device.
            start = self.write_positions
            count = keys.shape[2]
            self._keys.narrow(2, start, count).copy_(keys)
            self._values.narrow(2, start, count).copy_(values)
        else:
            # `index_put_`: an assignment would be recorded with the sizes of its values.
            places = self.write_positions
            self._keys.transpose(1, 2).index_put_(places, keys.transpose(1, 2))
            self._values.transpose(1, 2).index_put_(places, values.transpose(1, 2))
        return self._read(self._keys), self._read(self._values)

    def _read(self, buffer: Tensor) -> Tensor:
        """The part of a buffer that is in reach."""
        # While a pass is recorded it is a tensor of one number, which torch takes for a number as well.
        return buffer.narrow(2, 0, cast(int, self.reach))

    def _grow(self, rows: int, reach: int) -> None:
        _, heads, old, head_size = self._keys.shape
        capacity = max(MIN_CAPACITY, 2 * old, reach)
        # Zeros, not uninitialised memory: a masked position has weight 0, and 0 · NaN is NaN.
        keys, values = self._keys.new_zeros(2, rows, heads, capacity, head_size).unbind(0)
        if old:
            keys[:, :, :old] = self._keys
            values[:, :, :old] = self._values
        self._keys = keys
        self._values = values

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was; nothing beyond `reach` is moved. `memory` stays."""
        keys = self._read(self._keys).index_select(0, rows)
        values = self._read(self._values).index_select(0, rows)
        if len(rows) == len(self._keys):
            # Copied back, so that the room behind `reach` is kept for the next steps.
            self._read(self._keys).copy_(keys)
            self._read(self._values).copy_(values)
        else:
            self._keys = keys
            self._values = values
