"""A checkpoint and what comes after it, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch.distributed as dist

from janus_pt.benchmark.gpu_check.engine import device_computes, small_config, start
from janus_pt.benchmark.gpu_check.layouts import take_steps
from janus_pt.benchmark.gpu_check.result import NOT_COMPARABLE, Result, verdict
from janus_pt.checkpoint.async_save import AsyncCheckpointer
from janus_pt.checkpoint.layout import job_layout
from janus_pt.checkpoint.restore import load
from janus_pt.checkpoint.store import find
from janus_pt.config.reader import to_json
from janus_pt.parallel.job_store import from_first_rank, meet

SAVED_AT, STEPS = 2, 4


def resume_bit_for_bit(dtype: str) -> Result:
    """Train, save and train on; then load into a new engine and train on from there."""
    config = small_config(dtype=dtype)
    engine = start(config)
    layout = job_layout(config.parallel, dist.get_world_size())
    with tempfile.TemporaryDirectory() as own:
        folder = Path(from_first_rank(own))
        saver = AsyncCheckpointer(folder, keep_last=1)
        take_steps(engine, config, range(1, SAVED_AT + 1))
        state = {"step": SAVED_AT, "layout": layout}
        saver.save(engine, SAVED_AT, state, to_json(config), ())
        rest = range(SAVED_AT + 1, STEPS + 1)
        expected = take_steps(engine, config, rest)
        if not saver.finish():
            return verdict(["the checkpoint could not be written"], "", {})
        again = start(config)
        # An optimizer without a state loads none.
        take_steps(again, config, range(1, 2))
        checkpoint = find(folder)
        assert checkpoint is not None
        load(again, checkpoint, layout)
        found = take_steps(again, config, rest)
        # The folder is the first rank's.
        meet()
    if not device_computes():
        return Result(NOT_COMPARABLE, "saved and loaded; the device computes nothing")
    problems = [] if found == expected else ["the steps after loading are not those before"]
    return verdict(
        problems,
        f"steps {rest[0]} to {rest[-1]} are the same",
        {"before": expected, "after": found},
    )
