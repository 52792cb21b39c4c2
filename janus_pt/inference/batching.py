"""Which inputs are decoded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from janus_pt.utils.errors import UserError

BATCH_SIZE = 64
MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Batching:
    """Bounds on a batch.

    Attributes:
        batch_size: inputs decoded together at most.
        max_batch_tokens: source tokens in them, padding counted.

    Raises:
        UserError: a bound is below 1.
    """

    batch_size: int = BATCH_SIZE
    max_batch_tokens: int = MAX_BATCH_TOKENS

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_batch_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name}: must be at least 1, but is {value}")


def token_batches(lengths: Sequence[int], batching: Batching) -> Iterator[list[int]]:
    """Yield the indices of `lengths` in batches of similar length, longest first.

    An input that is longer than `max_batch_tokens` is alone. Inputs of length 0 are skipped.
    """
    batch: list[int] = []
    # Similar lengths need little padding. The longest come first, so that a batch that does not fit
    # into memory fails at once. The sort is stable: equal lengths stay in order.
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not lengths[index]:
            break
        # All inputs are padded to the length of the first.
        padded_tokens = (len(batch) + 1) * lengths[batch[0]] if batch else 0
        is_full = len(batch) == batching.batch_size or padded_tokens > batching.max_batch_tokens
        if batch and is_full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
