"""Kill a training of two ranks again and again, at random instants, and compare its end with an unbroken run's.

    python -m tests.faults.campaign --runs 50 --seed 1 [--set parallel.zero_stage=3 …]

Each time a random rank or all of them get SIGKILL: after a random step, in the middle of writing a checkpoint, or a
random time after the start. What is left must end by itself. Then the same command goes on. In the end every loss and
every parameter must equal, bit for bit, those of a run that nobody killed, and every sample of every epoch must have
been read exactly once. Exit code 0 if all that is so.
"""

# ruff: noqa: E402 - a script finds the project only once it has said where it is

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

import torch
from safetensors.torch import load_file

from janus_pt.checks import read_config
from janus_pt.data.batch_sampler import BatchStream, Cursor
from janus_pt.data.corpus import open_corpus
from tests.faults.jobs import Job, job
from tests.support.runs import TIMEOUT_S, losses, read_records, write_run_config

RANKS, SAVE_EVERY, STEPS_A_RUN = 2, 5, 12
SLOW_STEP_S = 3.0
LEAVE_S = 60.0
"""How long a rank may need to notice that another is gone, on a machine that does other things too."""


def step_of(folder: Path) -> int:
    metrics = folder / "run/metrics.jsonl"
    return (
        max((int(r["step"]) for r in read_records(metrics)), default=0) if metrics.exists() else 0
    )


def half_written(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run/checkpoints").glob(".step_*.partial")}


def wait_to_kill(running: Job, folder: Path, chance: random.Random, old: set[str]) -> str:
    """Wait for the instant of a kill; its kind, or "ended" if the training was sooner."""
    kind = chance.choice(["after a step", "while saving", "while saving", "after a time"])
    deadline = time.monotonic() + chance.uniform(0.0, 4.0)
    goal = step_of(folder) + chance.randint(1, STEPS_A_RUN)
    while any(rank.is_alive() for rank in running.ranks):
        if (
            (kind == "after a step" and step_of(folder) >= goal)
            or (kind == "while saving" and half_written(folder) - old)
            or (kind == "after a time" and time.monotonic() > deadline)
        ):
            time.sleep(chance.choice([0.0, chance.uniform(0.0, 0.02)]))
            return kind
        time.sleep(0.001)
    return "ended"


def kill_once(config: Path, changes: list[str], chance: random.Random) -> str:
    """Go on with the training until it is killed; what was done to it."""
    folder = config.parent
    old = half_written(folder)
    with job(config, *changes, ranks=RANKS) as running:
        kind = wait_to_kill(running, folder, chance, old)
        victims = chance.choice([range(RANKS), [chance.randrange(RANKS)]])
        if kind == "ended":
            return kind
        saving = half_written(folder) - old
        for rank in victims:
            running.send(signal.SIGKILL, rank)
        codes = running.wait(LEAVE_S)
        assert None not in codes, f"a rank outlived the other by {LEAVE_S} s: {codes}"
    whom = "both ranks" if len(victims) > 1 else "one rank"
    return f"{whom} {kind}" + (", a checkpoint half written" if saving else "")


def check_samples(config: Path, steps: int) -> tuple[int, int]:
    """Samples and epochs that were read, each sample of an epoch exactly once, by what the run counted itself."""
    content = read_config(config)
    corpus = open_corpus(content.data.train[0].path)
    stream = BatchStream(
        [corpus], [1.0], content.data, content.run.seed, content.model.max_positions
    )
    batches = stream.from_cursor(Cursor())
    planned = [
        sample
        for samples, _ in islice(batches, steps * content.data.micro_batches_per_step)
        for sample in samples
    ]
    seen = Counter((int(s["epoch"]), int(s["shard"]), int(s["sample"])) for s in planned)
    epochs = len(planned) // corpus.manifest.samples
    assert len(planned) == epochs * corpus.manifest.samples and set(seen.values()) == {1}
    state = json.loads((config.parent / f"run/checkpoints/step_{steps}/state.json").read_text())
    assert state["counts"][-1] == state["loader"]["samples"] == len(planned)
    return len(planned), epochs


def compare(config: Path, whole: Path) -> tuple[int, int]:
    """Numbers and parameters compared; they must be equal bit for bit."""
    ours, theirs = (losses(path.parent / "run/metrics.jsonl") for path in (config, whole))
    assert ours == theirs, "losses differ"
    ours_w, theirs_w = (
        load_file(path.parent / "run/export/model.safetensors") for path in (config, whole)
    )
    assert ours_w.keys() == theirs_w.keys() and all(
        torch.equal(ours_w[n], t) for n, t in theirs_w.items()
    ), "weights"
    return len(theirs), sum(tensor.numel() for tensor in theirs_w.values())


def campaign(folder: Path, runs: int, seed: int, changes: list[str]) -> None:
    """Kill `runs` times, finish, compare, and print what was done."""
    chance, done = random.Random(seed), Counter[str]()
    epoch_steps = 80 // 16  # the corpus has 80 samples
    steps = -(-(STEPS_A_RUN * runs + 10) // epoch_steps) * epoch_steps
    settings = dict(
        run__max_steps=steps, run__eval_every=15, run__peer_timeout=30.0, checkpoint__every=SAVE_EVERY,
        data__batch_unit="sequences", data__global_batch_size=16, data__micro_batch_size=4, data__num_workers=0,
    )  # fmt: skip
    whole, config = (
        write_run_config(make(folder / name), **settings) for name in ("whole", "killed")
    )
    codes, output = finish(whole, changes, steps)
    assert codes == [0] * RANKS, output
    for number in range(runs):
        what = kill_once(config, changes, chance)
        done[what] += 1
        print(f"{number + 1}: {what}, at step {step_of(config.parent)}", flush=True)
        if what == "ended":
            break
    codes, output = finish(config, changes, steps)
    assert codes == [0] * RANKS, output
    numbers, parameters = compare(config, whole)
    samples, epochs = check_samples(config, steps)
    print(
        f"\n{sum(done.values())} kills, seed {seed}, {steps} steps on {RANKS} ranks{', '.join(['', *changes])}:"
    )
    for what, count in sorted(done.items()):
        print(f"  {count:3} x {what}")
    print(f"equal bit for bit: {numbers} numbers of metrics.jsonl, {parameters} parameters")
    print(f"read exactly once: {samples} samples of {epochs} epochs")


def finish(config: Path, changes: list[str], steps: int) -> tuple[list[int | None], str]:
    """Run to the end, with as much time as a slow machine needs for that many steps."""
    with job(config, *changes, ranks=RANKS) as running:
        return running.wait(TIMEOUT_S + SLOW_STEP_S * steps), running.output.read_text()


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign(Path(folder), given.runs, given.seed, given.set)


if __name__ == "__main__":
    main()
