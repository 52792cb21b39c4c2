"""Settings of all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: with one process a core, further threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is; speed is the benchmark's business.
settings.register_profile("janus_pt", deadline=None)
settings.load_profile("janus_pt")

LONGEST = (
    "docs/test_commands.py",
    "parallel/test_layouts.py",
    "train/test_training.py",
    "train/test_from_huggingface.py",
    "planning/test_memory.py",
    "faults/test_mlflow_server.py",
    "benchmark/test_against.py",
    "claims/test_claims.py",
)
"""Files of slow tests that take minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: begun last, they would leave the other processes without work."""
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
