"""Import megatron-core and DeepSpeed without what they load at their start and nothing here uses: half of that start.

DeepSpeed's autotuner imports MLflow where it is installed, and MLflow imports pandas. megatron-core decorates fused
operations with `torch.compile`, which imports Inductor. Neither the autotuner nor those operations are used here.
Imported by whatever starts a process that trains, before anything else imports the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """In this block a module cannot be imported, if it was not before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what makes `import` raise ImportError
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _without_compiling() -> Iterator[None]:
    """In this block `torch.compile` returns the function as it is."""
    with mock.patch.object(torch, "compile", _unchanged):
        yield


def _unchanged(function: Callable[..., Any] | None = None, **_options: object) -> Any:
    """The function itself, or, called with options alone, a decorator that returns it."""
    return _unchanged if function is None else function


with _absent("mlflow"), _without_compiling():
    import deepspeed  # noqa: F401
    import megatron.core  # noqa: F401
