"""Doing one step again that went wrong: `janus-pt pretrain --config FILE --replay DUMP`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.config.schema import Config
from janus_pt.parallel import groups
from janus_pt.train.loop import read_steps, take_step
from janus_pt.train.run import prepare
from janus_pt.train.state import Run
from janus_pt.train.step import StepResult, evaluate, report, train_step
from janus_pt.train.watch.divergence import was_skipped
from janus_pt.train.watch.heartbeat import Heartbeat
from janus_pt.utils.errors import UserError


def replay(config: Config, dump: Path) -> None:
    """Do the dump's step again, from the newest whole checkpoint before it, and print its numbers.

    First each micro-batch alone (with the micro-batches of its number on the other ranks), without
    dropout; then the step as it was. Nothing is written. The layout must be the run's. All ranks
    take part.

    Raises:
        UserError: the file is no dump, or is one of another run.
    """
    content = read_dump(dump)
    step = content["step"]
    heartbeat = Heartbeat(config.run.peer_timeout)
    try:
        run = prepare(config, resume=True, heartbeat=heartbeat, before_step=step)
        for _, batches in read_steps(run, heartbeat, last=step - 1):
            take_step(run, batches)
        # The samples of a step follow from the loader's state before it.
        if run.loader.state_dict() != content["loader"]:
            raise UserError(f"{dump}: this run read other data before step {step}")
        batches = next(iter(run.loader))
        # Before the step, which changes the weights.
        for number, batch in enumerate(batches):
            _print_numbers(f"micro-batch {number}", _numbers(run, evaluate(run.engine, [batch])))
        result = train_step(run.engine, batches, step, config.run.seed)
        _print_numbers(f"step {step}", _numbers(run, result))
        _print_numbers("the update was", {"skipped": float(was_skipped(run.engine))})
        heartbeat.stop()
    finally:
        heartbeat.close()
        groups.shutdown()


def read_dump(path: Path) -> dict[str, Any]:
    """The content of a dump.

    Raises:
        UserError: the file is missing, broken, or no dump.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content["step"], int) and isinstance(content["loader"], dict):
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # whatever is wrong with the file, a user needs the same message
    raise UserError(f"{path}: no dump of a step; give a file of the folder `dumps` of a run")


def _numbers(run: Run, result: StepResult) -> dict[str, float]:
    return {**report(run.loss, result), **asdict(result.counts.sizes())}


def _print_numbers(title: str, numbers: Mapping[str, float]) -> None:
    """Print on the first rank."""
    if dist.get_rank() == 0:
        values = "  ".join(f"{name} {value:.6g}" for name, value in numbers.items())
        print(f"{title:<16} {values}", flush=True)
