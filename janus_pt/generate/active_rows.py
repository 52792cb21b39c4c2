"""The rows of a batch that are still being decoded.

All ways to decode share one rule: a finished row leaves the batch, so that later passes do not pay
for it, and its output goes back to the place the row had at first.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


LOOK_EVERY = 8
"""Steps between looks for finished rows, on a device whose queue the host would have to wait for."""


def looks_for_finished(step: int, shortest: int, longest: int, device: torch.device) -> bool:
    """Whether decoding left to right looks for finished rows after `step`; no row has ended before `shortest`.

    A look waits for the device, which then has nothing queued. A CPU has no queue: there a row that
    goes on for nothing costs more than a look.
    """
    if step < shortest:
        return False
    return device.type == "cpu" or step % LOOK_EVERY == LOOK_EVERY - 1 or step == longest


@dataclass
class ActiveRows:
    """State of the active rows; a subclass adds its tensors, whose first dimension is the row.

    Attributes:
        index: `[active]`: each active row's place in the whole batch.
    """

    index: Tensor

    def put_back(self, outputs: DataclassInstance) -> None:
        """Write the rows to their places in `outputs`, whose fields are named as the state's are.

        Rows that stay active are written, too: a later call overwrites them.
        """
        # Only the fields that outputs have: the rest of the state serves decoding alone.
        for field in fields(outputs):
            whole_batch: Tensor = getattr(outputs, field.name)
            whole_batch[self.index] = getattr(self, field.name)

    def keep(self, rows: Tensor) -> None:
        """Go on with the active rows `rows` alone, in this order."""
        # By name, so that no tensor of a subclass can be forgotten.
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name).index_select(0, rows))

    def leave(self, going: Tensor, outputs: DataclassInstance) -> None:
        """Put all rows' outputs back, then go on with the rows `going` alone."""
        self.put_back(outputs)
        self.keep(going)


def rows_of_sources(sources: Tensor, copies: int) -> Tensor:
    """Rows of `sources [n]` where each source has `copies` rows one after another, `[n × copies]`."""
    first_row = sources[:, None] * copies
    return (first_row + torch.arange(copies, device=sources.device)).flatten()
