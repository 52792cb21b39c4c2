"""Read a configuration within the limits of all rooms; each room says its own in its `limits.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from janus_pt.config.content import Sections
from janus_pt.config.messages import Problem
from janus_pt.config.reader import read_limited_config
from janus_pt.config.schema import Config
from janus_pt.model.limits import model_problems, trained_problems
from janus_pt.objectives.limits import objective_problems
from janus_pt.parallel.limits import parallel_problems
from janus_pt.tasks.limits import validation_problems
from janus_pt.train.limits import run_problems


def read_config(
    path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None
) -> Config:
    """`config.reader.read_limited_config` with the limits of all rooms.

    Raises:
        UserError: every problem at once.
    """
    return read_limited_config(path, overrides, world_size, limit_problems)


def limit_problems(sections: Sections, world_size: int | None) -> Iterator[Problem]:
    """Sections that are valid by themselves but not together; `world_size`: ranks that share a
    step, if known."""
    if sections.model:
        yield from model_problems(sections.model)
    yield from parallel_problems(sections, world_size)
    if sections.objective:
        yield from objective_problems(sections.objective, sections.model, sections.parallel)
    yield from run_problems(sections)
    yield from trained_problems(sections)
    yield from validation_problems(sections)
