"""How much longer a step takes that triggers a checkpoint: one run on one process, step by step.

    python -m tests.faults.saving_cost

Prints the median step, the median step that saves, their ratio, and the size of a checkpoint.
"""

# ruff: noqa: E402 - a script finds the project only once it has said where it is

from __future__ import annotations

import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from janus_pt.checks import read_config
from janus_pt.train import loop
from tests.support.runs import write_run_config

STEPS, EVERY = 40, 5
SHAPE = dict(
    hidden_size=192, ffn_hidden_size=768, num_attention_heads=4, encoder_layers=2, decoder_layers=2
)


def measure(folder: Path) -> tuple[list[float], list[float], int]:
    """Seconds of the steps that save none, of those that save, and the bytes of a checkpoint."""
    changes: dict[str, Any] = {f"model__{name}": value for name, value in SHAPE.items()}
    changes |= dict(data__global_batch_size=8192, data__micro_batch_size=1024, data__window=2000)
    changes |= dict(
        run__max_steps=STEPS, run__eval_every=0, run__log_every=STEPS, checkpoint__every=EVERY
    )
    config = read_config(write_run_config(folder, **changes))
    starts: list[float] = []
    next_batches = loop.next_batches

    def timed(*arguments: Any) -> Any:
        starts.append(time.monotonic())
        return next_batches(*arguments)

    loop.next_batches = timed
    loop.train(config, resume=False)
    seconds = [after - before for before, after in pairwise(starts)][2:]  # the first warm up
    numbers = range(3, STEPS)
    saving = [second for step, second in zip(numbers, seconds, strict=True) if step % EVERY == 0]
    others = [second for step, second in zip(numbers, seconds, strict=True) if step % EVERY]
    size = sum(
        path.stat().st_size for path in (folder / f"run/checkpoints/step_{STEPS}").rglob("*")
    )
    return others, saving, size


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        others, saving, size = measure(Path(folder))
    plain, with_save = statistics.median(others), statistics.median(saving)
    print(
        f"checkpoint {size / 1e6:.0f} MB; median step {plain:.3f} s, median step that saves {with_save:.3f} s"
    )
    print(
        f"ratio {with_save / plain:.2f}; the slowest that saves {max(saving):.3f} s, of the others {max(others):.3f} s"
    )


if __name__ == "__main__":
    main()
