"""Seeing a run: `metrics.jsonl`, the progress line, and what share of the machine's arithmetic is used."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from janus_pt.config.schema import ModelConfig
from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.files import write_atomically

Record = dict[str, float]
"""What is known of one step: "step" and metrics by name."""

SECONDS_BETWEEN_LINES = 10.0
"""Where the progress line cannot be rewritten in place, one is printed this often."""

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
    """`metrics.jsonl` of a run folder: one JSON object a line, the truth about what a run did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = b""

    def append(self, record: Mapping[str, float]) -> None:
        """Write one record; it has left the process when this returns. NaN and infinities become null.

        What the disk does not take is told once, kept, and written with a later record.
        """
        line, size = _line(record).encode(), None
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                if file.write(self._waiting + line) < len(self._waiting + line):
                    raise OSError("no space for a whole line")
            self._waiting = b""
        except OSError as error:
            if not self._waiting:
                warn(
                    f"{self.path}: cannot be written: {error}; training goes on, metrics are kept until it can be"
                )
            self._waiting += line
            if size is not None:
                os.truncate(self.path, size)

    def truncate_after(self, step: int) -> None:
        """Drop the records of later steps, which a resumed run computes again, and a line cut short by a crash."""
        if self.path.exists():
            kept = [record for record in read_metrics(self.path) if record["step"] <= step]
            write_atomically(self.path, "".join(map(_line, kept)))


def _line(record: Mapping[str, float]) -> str:
    finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
    return json.dumps(finite) + "\n"


def read_metrics(path: Path) -> list[Record]:
    """All records of a metrics file, null as NaN. A last line without its end is left out.

    Raises:
        UserError: another line is no record.
    """
    return metrics_after(path, 0)[0]


def metrics_after(path: Path, offset: int) -> tuple[list[Record], int]:
    """The whole records from byte `offset` on, and the offset to go on from; see `read_metrics`."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    content = content[: content.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = {
                key: math.nan if value is None else value for key, value in json.loads(line).items()
            }
            record["step"] = int(record["step"])
        except (ValueError, KeyError, AttributeError, TypeError):
            place = (
                f"{path}: line {number}"
                if offset == 0
                else f"{path}: line {number} from byte {offset} on"
            )
            raise UserError(f"{place} is no record of metrics; remove it") from None
        records.append(record)
    return records, offset + len(content)


class ProgressLine:
    """One line on the first rank that says how the run goes, rewritten in place on a terminal."""

    def __init__(self, max_steps: int, step: int = 0, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        self.max_steps = max_steps
        self.stream = stream
        self.bar = tqdm(
            file=stream, disable=not stream.isatty(), bar_format="{desc}", dynamic_ncols=True
        )
        self.start = (step, time.monotonic())
        self.last_line = -math.inf

    def update(self, record: Mapping[str, float]) -> None:
        """Show a record of `metrics.jsonl`; a validation gets a line that stays."""
        text = describe(record, self.max_steps)
        if any(key.startswith("valid/") for key in record):
            tqdm.write(text, file=self.stream)
            return
        now, step, (first, started) = time.monotonic(), int(record["step"]), self.start
        if step > first:
            left = (self.max_steps - step) * (now - started) / (step - first)
            text += f"  ETA {timedelta(seconds=round(left))}"
        if not self.bar.disable:
            self.bar.set_description_str(text)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES or step == self.max_steps:
            self.last_line = now
            tqdm.write(text, file=self.stream)

    def close(self) -> None:
        """Leave the last line as it stands."""
        self.bar.close()


def describe(record: Mapping[str, float], max_steps: int) -> str:
    """A record as text: step, every loss, tokens per second, MFU."""
    parts = [f"step {int(record['step'])}/{max_steps}"]
    if any(key.startswith("valid/") for key in record):
        parts.append("validation")
    parts += [
        f"{key.rpartition('loss/')[2]} {value:.3f}"
        for key, value in record.items()
        if "loss/" in key
    ]
    if "tokens_per_s" in record:
        parts.append(f"{tqdm.format_sizeof(record['tokens_per_s'])} tokens/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    return "  ".join(parts)


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
