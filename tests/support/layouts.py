"""The same run on every layout, and continued on every other: the table of docs/reference/parallelism.md.

    python -m tests.support.layouts [--quick] [--output table.md]

Each layout trains ten steps with dropout, saving at the fifth. Its numbers are compared with those of one process;
then runs are continued from the fifth step: on the same layout, where every number must be the same to the last bit,
and on others, for which the checkpoint is converted: with `--quick` to each layout from TP2 x PP2, and from each to one
process; without it, from every layout to every other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.ranks import run_ranks
from tests.support.runs import losses, write_run_config

Numbers = dict[tuple[float, str], float]
SAVED, STEPS = 5, 10


@dataclass(frozen=True)
class Layout:
    """One way to spread the run."""

    name: str
    ranks: int = 1
    tensor: int = 1
    pipeline: int = 1
    stage: int = 1
    dtype: str = "float32"
    offload: bool = False
    sequence: bool = False
    recompute: str = "none"

    def settings(self) -> list[str]:
        changes = {
            "parallel.tensor_parallel_size": self.tensor,
            "parallel.pipeline_parallel_size": self.pipeline,
            "parallel.zero_stage": self.stage,
            "parallel.offload_optimizer": str(self.offload).lower(),
            "parallel.offload_parameters": str(self.offload and self.stage == 3).lower(),
            "parallel.sequence_parallel": str(self.sequence).lower(),
            "parallel.activation_checkpointing": self.recompute,
            "precision.dtype": self.dtype,
        }
        return [f"{key}={value}" for key, value in changes.items()]


LAYOUTS = [
    Layout("one process"),
    Layout("TP2", 2, tensor=2),
    Layout("PP2", 2, pipeline=2),
    Layout("TP2 x PP2", 4, tensor=2, pipeline=2),
    Layout("DP2", 2),
    Layout("DP2 x TP2", 4, tensor=2),
    Layout("DP2 x PP2", 4, pipeline=2),
    Layout("DP2, ZeRO-2", 2, stage=2),
    Layout("DP2, ZeRO-3", 2, stage=3),
    Layout("DP2 x TP2, ZeRO-2", 4, tensor=2, stage=2),
    Layout("DP2 x TP2, ZeRO-3", 4, tensor=2, stage=3),
    Layout("DP2, ZeRO-3, offload", 2, stage=3, offload=True),
    Layout("DP2, ZeRO-0", 2, stage=0),
]
SHARED_ROWS = [
    Layout("TP2, rows shared", 2, tensor=2, sequence=True),
    Layout(
        "TP2 x PP2, rows shared, attention recomputed",
        4,
        tensor=2,
        pipeline=2,
        sequence=True,
        recompute="attention",
    ),
    Layout("DP2 x TP2, ZeRO-3, rows shared", 4, tensor=2, stage=3, sequence=True),
]
RECOMPUTING = [
    Layout("TP2, attention recomputed", 2, tensor=2, recompute="attention"),
    Layout("TP2, feed-forward recomputed", 2, tensor=2, recompute="feed_forward"),
]
BFLOAT16 = [
    Layout("one process, bfloat16", dtype="bfloat16"),
    Layout("TP2, bfloat16", 2, tensor=2, dtype="bfloat16"),
    Layout("PP2, bfloat16", 2, pipeline=2, dtype="bfloat16"),
    Layout("TP2 x PP2, bfloat16", 4, tensor=2, pipeline=2, dtype="bfloat16"),
    Layout("DP2, bfloat16", 2, dtype="bfloat16"),
    Layout("DP2, ZeRO-3, bfloat16", 2, stage=3, dtype="bfloat16"),
    Layout("DP2, ZeRO-0, bfloat16", 2, stage=0, dtype="bfloat16"),
]


def train(config: str, settings: list[str], resume: bool) -> None:
    """One rank of a run."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    from janus_pt.checks import read_config
    from janus_pt.train.loop import train as run

    run(read_config(config, settings, int(os.environ["WORLD_SIZE"])), resume)


class Comparison:
    """Runs in `folder`, each done once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = write_run_config(
            folder,
            model__dropout=0.1,
            data__num_workers=0,
            model__encoder_layers=2,
            model__decoder_layers=2,
            checkpoint__every=SAVED,
            checkpoint__keep_last=9,
            run__max_steps=STEPS,
            run__eval_every=SAVED,
        )

    def run(self, layout: Layout, origin: Layout | None = None) -> Path:
        """The run folder of a layout, or of the one that goes on from what `origin` saved."""
        folder = (
            self.folder
            / f"{layout.name} from {origin.name if origin else 'the start'}".replace(" ", "_")
        )
        if (folder / "metrics.jsonl").exists():
            return folder
        if origin is not None:
            checkpoints = self.run(origin) / "checkpoints"
            shutil.copytree(checkpoints / f"step_{SAVED}", folder / "checkpoints" / f"step_{SAVED}")
            (folder / "checkpoints" / "latest").write_text(f"step_{SAVED}")
        settings = [*layout.settings(), f"run.output_dir={folder}"]
        run_ranks(train, layout.ranks, str(self.config), settings, origin is not None)
        return folder


def numbers(folder: Path, after: int = 0) -> Numbers:
    """Losses and gradient norms of the steps behind `after`."""
    found = losses(folder / "metrics.jsonl")
    return {
        k: v for k, v in found.items() if k[0] > after and ("loss/" in k[1] or k[1] == "grad_norm")
    }


def difference(ours: Path, theirs: Path, after: int = 0) -> float:
    """Largest relative difference of losses and gradient norms, and of the weights at the end as one vector."""
    mine, other = numbers(ours, after), numbers(theirs, after)
    assert mine.keys() == other.keys() and mine
    told = max(abs(mine[k] - other[k]) / abs(other[k]) for k in mine)
    first, second = (load_file(f / "export" / "model.safetensors") for f in (ours, theirs))
    assert first.keys() == second.keys()
    gap = sum(float((first[n] - second[n]).double().square().sum()) for n in first) ** 0.5
    size = sum(float(second[n].double().square().sum()) for n in first) ** 0.5
    return max(told, gap / size)


def same_bits(ours: Path, theirs: Path) -> bool:
    """Whether all losses, norms and final weights are the same to the last bit."""
    first, second = (load_file(f / "export" / "model.safetensors") for f in (ours, theirs))
    weights = all(torch.equal(first[name], second[name]) for name in second)
    return weights and numbers(ours, SAVED) == numbers(theirs, SAVED)


@dataclass(frozen=True)
class Row:
    """A layout's numbers: against one process, resumed on itself, and the worst of the continued runs."""

    layout: Layout
    against_one: float
    same_bits: bool
    continued: dict[str, float]


def rows(comparison: Comparison, quick: bool) -> Iterator[Row]:
    """All layouts, one after another."""
    one, spread = LAYOUTS[0], LAYOUTS[3]
    for layout in LAYOUTS:
        whole = comparison.run(layout)
        resumed = comparison.run(layout, layout)
        pairs = (
            [(spread, layout), (layout, one)] if quick else [(origin, layout) for origin in LAYOUTS]
        )
        continued = {
            f"{origin.name} -> {target.name}": difference(
                comparison.run(target, origin), comparison.run(origin), after=SAVED
            )
            for origin, target in pairs
            if origin != target and origin.stage > 0  # what ZeRO-0 saved fits no other layout
        }
        yield Row(
            layout, difference(whole, comparison.run(one)), same_bits(resumed, whole), continued
        )
    for layout in SHARED_ROWS:
        whole, resumed = comparison.run(layout), comparison.run(layout, layout)
        yield Row(layout, difference(whole, comparison.run(one)), same_bits(resumed, whole), {})
    for layout in BFLOAT16:
        whole, resumed = comparison.run(layout), comparison.run(layout, layout)
        yield Row(
            layout, difference(whole, comparison.run(BFLOAT16[0])), same_bits(resumed, whole), {}
        )


def as_table(found: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| layout | processes | against one process | resumed on itself | continued on another layout, worst |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        worst = (
            f"{max(row.continued.values()):.1e} ({len(row.continued)})" if row.continued else "-"
        )
        bits = "same bits" if row.same_bits else "DIFFERS"
        lines.append(
            f"| {row.layout.name} | {row.layout.ranks} | {row.against_one:.1e} | {bits} | {worst} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer continued runs")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Comparison(Path(folder)), arguments.quick):
            print(row, flush=True)
            found.append(row)
    print(as_table(found))
    if arguments.output:
        arguments.output.write_text(as_table(found))


if __name__ == "__main__":
    main()
