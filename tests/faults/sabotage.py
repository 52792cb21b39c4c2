"""What goes wrong in one rank of a job, put there from outside the program: `RANK:STEP[,STEP…]:VALUE`."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import torch

from janus_pt.train import loop


def begin(what: str) -> None:
    """From now on a gradient of that rank is that value in those steps; "hang" and "block": reading its data
    takes for ever, the second one with Python's interpreter lock held."""
    rank, steps, value = what.split(":")
    if os.environ["RANK"] != rank:
        return
    wrong = {int(step) for step in steps.split(",")}
    train_step, next_batches = loop.train_step, loop.next_batches

    def hanging(batches: Any, step: int) -> Any:
        if step in wrong:
            # `PyDLL`, unlike `CDLL`, keeps the lock.
            time.sleep(10**6) if value == "hang" else ctypes.PyDLL(None).sleep(10**6)
        return next_batches(batches, step)

    if value in ("hang", "block"):
        loop.next_batches = hanging
        return

    def sabotaged(engine: Any, batches: Any, step: int, *others: Any) -> Any:
        hooks = []
        if step in wrong:
            weight = next(p for p in engine.module.parameters() if p.ndim == 1)
            hooks.append(
                weight.register_hook(lambda gradient: torch.full_like(gradient, float(value)))
            )
        result = train_step(engine, batches, step, *others)
        for hook in hooks:
            hook.remove()
        return result

    loop.train_step = sabotaged  # type: ignore[assignment]
