"""Doing one step again that went wrong: `launchers/pretrain.py --config FILE --replay DUMP`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.config.schema import Config
from janus_pt.parallel import groups
from janus_pt.train.loop import train_steps
from janus_pt.train.run import prepare
from janus_pt.train.step import evaluate, report, train_step
from janus_pt.train.watch.divergence import was_skipped
from janus_pt.train.watch.heartbeat import Heartbeat
from janus_pt.utils.errors import UserError


def replay(config: Config, dump: Path) -> None:
    """Go on from the newest whole checkpoint before the dump's step to that step, and tell its numbers.

    First each micro-batch alone (with the others of its number on the other ranks), without dropout; then the step
    as it was. Nothing is written. The layout must be that of the run. All ranks take part.

    Raises:
        UserError: the dump is none, or is not of this run.
    """
    content = read_dump(dump)
    peers = Heartbeat(config.run.peer_timeout)
    try:
        run = prepare(config, True, peers, before_step=content["step"])
        for _ in train_steps(run, peers, until=content["step"] - 1):
            pass
        if run.loader.state_dict() != content["loader"]:
            raise UserError(f"{dump}: this run read other data before step {content['step']}")
        batches = next(iter(run.loader))
        for number, batch in enumerate(batches):
            _tell(f"micro-batch {number}", report(run.loss, evaluate(run.engine, [batch])))
        result = train_step(run.engine, batches, content["step"], config.run.seed)
        _tell(f"step {content['step']}", report(run.loss, result))
        _tell("the update was", {"left out": float(was_skipped(run.engine))})
    finally:
        peers.stop()
        groups.shutdown()


def read_dump(path: Path) -> dict[str, Any]:
    """The content of a dump."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content["step"], int) and isinstance(content["loader"], dict):
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: no dump of a step; give a file of the folder `dumps` of a run")


def _tell(what: str, numbers: dict[str, float]) -> None:
    if dist.get_rank() == 0:
        print(
            f"{what:<16}",
            "  ".join(f"{name} {value:.6g}" for name, value in numbers.items()),
            flush=True,
        )
