"""`metrics.jsonl` of a run folder: one JSON object a line, the record of what a run did."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from janus_pt.config.schema import ModelConfig
from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.files import write_atomically

Record = dict[str, float]
"""One line: "step" and metrics by name."""

CONTENT_READ = 1 / 3
"""Share of its sample's content slots that a slot reads on average: half of the AR ones, or the NAR ones."""

PEAK_TFLOPS = {
    # accelerator: (bfloat16, float32) of dense matrix products, from the makers' data sheets; a name comes before
    # those it contains. V100: float16.
    "B200": (2250.0, 75.0),
    "GH200": (989.0, 67.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 31.5),
    "A10": (125.0, 31.2),
    "V100": (125.0, 15.7),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.0, 82.6),
    "MI300X": (1307.0, 163.4),
}


class MetricsFile:
    """Writes `metrics.jsonl`. On the first rank only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten = b""

    def append(self, record: Mapping[str, float]) -> None:
        """Write one record; it has left the process on return. NaN and infinities become null.

        If the disk does not take it, one warning is printed; the record is kept in memory and
        written with a later one.
        """
        content = self._unwritten + _to_line(record).encode()
        size_before: int | None = None
        try:
            # Unbuffered: a record must survive the process, and a full disk must be noticed here.
            with self.path.open("ab", buffering=0) as file:
                size_before = file.tell()
                if file.write(content) < len(content):
                    raise OSError("no space for a whole line")
            self._unwritten = b""
        except OSError as error:
            if not self._unwritten:
                warn(
                    f"{self.path}: cannot be written: {error}; training goes on, metrics are kept "
                    "until it can be"
                )
            self._unwritten = content
            # A part may have been written. The next record must not begin behind half a line.
            if size_before is not None:
                os.truncate(self.path, size_before)

    def truncate_after(self, step: int) -> None:
        """Drop records of later steps, which a resumed run repeats, and a line torn by a crash."""
        if not self.path.exists():
            return
        lines = [_to_line(record) for record in read_metrics(self.path) if record["step"] <= step]
        write_atomically(self.path, "".join(lines))


def read_metrics(path: Path) -> list[Record]:
    """All records of a metrics file, null as NaN. A last line without its end is skipped.

    Raises:
        UserError: another line is no record.
    """
    records, _ = metrics_after(path, 0)
    return records


def metrics_after(path: Path, offset: int) -> tuple[list[Record], int]:
    """The whole records from byte `offset` on, and the offset after them; see `read_metrics`."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    # The file may be read while the training writes to it: the last line counts once it ends.
    content = content[: content.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            records.append(_from_line(line))
        except (ValueError, KeyError, AttributeError, TypeError):
            position = f"line {number} from byte {offset} on" if offset else f"line {number}"
            raise UserError(f"{path}: {position} is no record of metrics; remove it") from None
    return records, offset + len(content)


def _to_line(record: Mapping[str, float]) -> str:
    # JSON has neither NaN nor infinities, and strict readers refuse Python's extension.
    finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
    return json.dumps(finite) + "\n"


def _from_line(line: bytes) -> Record:
    values = json.loads(line)
    record = {key: math.nan if value is None else value for key, value in values.items()}
    record["step"] = int(record["step"])
    return record


def flops_per_step(
    model: ModelConfig,
    source_tokens: float,
    content_slots: float,
    query_slots: float,
    predicted_slots: float,
    source_length: float,
    content_length: float,
) -> float:
    """Floating-point operations that one step needs, forward and backward.

    The first four are totals over the step, padding left out; `predicted_slots` pass the output projection.
    `source_length` is the mean number of source tokens that a source token or slot reads, `content_length` the mean
    number of content slots that a slot reads. A multiply-add is two operations and the backward pass two forward
    passes. With d the hidden and f the ffn size, multiply-adds per layer:

        encoder   source_tokens · (4d² + 2df + 2d · source_length)
        decoder   slots · (2d² + 2d² + 2df + 2d · content_length + 2d · source_length)
                  + content_slots · 2d² + source_tokens · 2d²       in the last layer only of slots that predict

    that is: query and output projections of self- and cross-attention for every slot, keys and values for content
    slots and, for cross-attention, source tokens. A causal self-attention adds one that all slots go through.
    Embeddings, norms, softmax, the length head and what activation checkpointing recomputes are left out, as is usual
    for MFU (Chowdhery et al. 2022, appendix B), and so is the first pass of CMLMC, which has no gradient.
    """
    d, ffn = model.hidden_size, 2 * model.hidden_size * model.ffn_hidden_size
    slots = (model.decoder_layers - 1) * (content_slots + query_slots) + predicted_slots
    encoder = source_tokens * (4 * d * d + ffn + 2 * d * source_length)
    decoder = slots * (4 * d * d + ffn + 2 * d * (content_length + source_length))
    decoder += model.decoder_layers * (content_slots + source_tokens) * 2 * d * d
    if model.causal_self_attention:
        every = content_slots + query_slots
        decoder += model.decoder_layers * (
            every * 2 * d * (d + content_length) + content_slots * 2 * d * d
        )
    output = predicted_slots * d * model.vocab_size
    return 6.0 * (model.encoder_layers * encoder + decoder + output)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second the device could do at best: from a table of accelerators, else measured (< 0.3 s)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for known, (bfloat16, float32) in PEAK_TFLOPS.items():
        if known in name:
            return 1e12 * (float32 if dtype == torch.float32 else bfloat16)
    return _measured_flops(device, dtype)


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate over matrix products of growing size, up to one that takes long enough."""
    best = 0.0
    for size in (64, 256, 512, 1024, 2048, 4096, 8192):
        factor = torch.ones(size, size, device=device, dtype=dtype)
        seconds = min(_seconds_of_product(factor) for _ in range(2))
        best = max(best, 2 * size**3 / seconds)
        if seconds > 0.02:
            break
    return best


def _seconds_of_product(factor: torch.Tensor) -> float:
    started = time.perf_counter()
    (factor @ factor)[0, 0].item()
    return time.perf_counter() - started
