"""What a check has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped", "not comparable"]
PASSED: Status = "passed"
FAILED: Status = "failed"
SKIPPED: Status = "skipped"
NOT_COMPARABLE: Status = "not comparable"
"""The device computes nothing, so its numbers cannot be compared with any."""


@dataclass
class Result:
    """One check's outcome: what it says in a sentence, and its numbers for JSON."""

    status: Status
    message: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verdict(problems: list[str], message: str, numbers: dict[str, Any]) -> Result:
    """Failed with the problems if there are any, else passed with the message."""
    if problems:
        return Result(FAILED, "; ".join(problems), numbers)
    return Result(PASSED, message, numbers)
