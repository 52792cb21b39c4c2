"""Functions of tensors that are recorded at their first call and then run without Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor, nn

Function = Callable[..., Tensor]
"""From tensors to a tensor."""
Record = Callable[[Function, Sequence[Tensor], Sequence[nn.Module]], Function]
"""Makes a recorded function of a function, an example of its tensors, and the modules whose weights are in a form of
their own."""


class RecordedCalls:
    """Recorded functions of one model, which serve tensors of any size."""

    def __init__(self, record: Record, opaque: Sequence[nn.Module]) -> None:
        """`opaque`: the modules that `record` must know of."""
        self._record = record
        self._opaque = list(opaque)
        self._calls: dict[Hashable, Function] = {}

    def __getstate__(self) -> dict[str, Any]:
        """All but the recorded functions, which read the weights of this very model: a copy of it records its own."""
        return {**self.__dict__, "_calls": {}}

    def call(self, key: Hashable, function: Function, tensors: Sequence[Tensor]) -> Tensor:
        """`function(*tensors)`; `key` stands for all that `function` depends on except its tensors."""
        recorded = self._calls.get(key)
        if recorded is None:
            recorded = self._calls[key] = self._record(function, tensors, self._opaque)
        return recorded(*tensors)
