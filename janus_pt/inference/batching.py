"""Which inputs are decoded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(
    lengths: Sequence[int], batch_size: int, max_batch_tokens: int
) -> Iterator[list[int]]:
    """Yield the places of `lengths` in batches of like length, longest first.

    A batch has at most `batch_size` places, and at most `max_batch_tokens` tokens with padding (a place that is longer
    than this is alone). Places of length 0 are left out.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not lengths[place]:
            break
        if batch and (
            len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > max_batch_tokens
        ):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
