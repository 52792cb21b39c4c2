"""How a Python program is started under the null GPU.

    python -m tests.support.null_gpu.environment PROGRAM.py [ARGUMENTS]
    python -m tests.support.null_gpu.environment -m MODULE [ARGUMENTS]

Imports nothing but the standard library: it runs in any Python.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.support.null_gpu.build import RUNTIME, build

ROOT = Path(__file__).parents[3]
VENV = Path(os.environ.get("NULL_GPU_VENV", ROOT / ".venv-cuda"))
"""A virtual environment with the CUDA build of torch; `make test-null-gpu` makes it."""


def missing() -> str:
    """Why nothing can be started here; empty if it can."""
    if shutil.which("gcc") is None:
        return "the null GPU is compiled with gcc, which is not here"
    if not (VENV / "bin" / "python").exists():
        return f"{VENV} has no CUDA build of torch: run `make test-null-gpu`"
    return ""


def site_packages() -> Path:
    """Where the virtual environment has its packages."""
    return next(VENV.glob("lib/python3.*/site-packages"))


def command(*arguments: str) -> list[str]:
    """The command line of Python with these arguments."""
    return [str(VENV / "bin" / "python"), *arguments]


def environment(**settings: str) -> dict[str, str]:
    """The variables of a process under the null GPU, with `settings` added."""
    built = build(site_packages(), VENV / "null_gpu")
    # Compiled kernels are kept: they are the same in every process.
    cache = VENV / "null_gpu" / "cache"
    return {
        **os.environ,
        "LD_PRELOAD": str(built / RUNTIME),
        "LD_LIBRARY_PATH": str(built),
        "TRITON_LIBCUDA_PATH": str(built),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        # Without processes that compile, each of which would import torch first.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent / 'site'}",
        "DS_ACCELERATOR": "cuda",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **settings,
    }


def main() -> None:
    """Become the program."""
    if reason := missing():
        sys.exit(reason)
    started = command(*sys.argv[1:])
    os.execve(started[0], started, environment())


if __name__ == "__main__":
    main()
