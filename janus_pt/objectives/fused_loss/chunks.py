"""Target tokens in chunks, so that no tensor of all slots times the vocabulary is made."""

from __future__ import annotations

from collections.abc import Iterator

CPU_ELEMENTS, CPU_ROWS = 1 << 23, 256
"""Most logits and rows of a chunk. Matrix products gain nothing from more, and caches hold this."""
CUDA_ELEMENTS = 1 << 26
"""Most logits of a chunk on CUDA: 256 MiB in float32, and 128 MiB more for a bfloat16 gradient.

Launching a chunk's kernels must take less than computing it. Its three products are 6 x 2^26 x
hidden size FLOPs: at hidden size 768 0.3 ms of an H100's peak, in which its nine launches fit if a
launch takes less than 30 µs. More elements would cost memory and save the device nothing."""


def chunk_rows(vocab_rows: int, on_cpu: bool) -> int:
    """Rows of a chunk, all streams counted."""
    elements = CPU_ELEMENTS if on_cpu else CUDA_ELEMENTS
    rows = max(1, elements // max(1, vocab_rows))
    return min(rows, CPU_ROWS) if on_cpu else rows


Run = tuple[list[int], list[slice]]
"""Numbers of some streams, and chunks of target tokens that all of these predict."""


def runs(lengths: list[int], rows: int) -> Iterator[Run]:
    """Runs of target tokens that the same streams predict, each in chunks of `rows`."""
    first = 0
    while first < max(lengths):
        streams = [stream for stream, length in enumerate(lengths) if length > first]
        # Streams predict prefixes: the shortest of these ends the run.
        last = min(lengths[stream] for stream in streams)
        step = max(1, rows // len(streams))
        chunks = [slice(start, min(start + step, last)) for start in range(first, last, step)]
        yield streams, chunks
        first = last
