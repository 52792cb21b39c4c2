"""Compile the sources of this folder for this CPU, once, and load the library."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from janus_pt.utils.errors import UserError

FOLDER = Path(__file__).parent
MAIN_SOURCE = "decoder.cpp"
# -fno-math-errno: square roots are instructions. No OpenMP at linking: see `load_library`.
COMPILE_FLAGS = (
    *("-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-fopenmp", "-fPIC"),
    *("-fno-math-errno", "-c"),
)


@cache
def load_library() -> ctypes.CDLL:
    """The compiled sources; from the cache folder of this user, if they have been compiled before.

    Raises:
        UserError: there is no C++ compiler, or it cannot compile them.
    """
    path = library_path()
    if not path.exists():
        _compile(path)
    # OpenMP's functions are those that torch has loaded: two such libraries would have two sets of threads.
    return ctypes.CDLL(str(path))


def library_path() -> Path:
    """Where the library is kept; another file for other sources, flags or another CPU."""
    digest = hashlib.sha256()
    for source in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]):
        digest.update(source.read_bytes())
    digest.update(" ".join((compiler() or "", *COMPILE_FLAGS)).encode())
    # Home folders are shared by machines with different CPUs.
    digest.update(_cpu_flags().encode())
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home / "janus_pt" / f"native_{digest.hexdigest()[:16]}.so"


def compiler() -> str | None:
    """The command of the C++ compiler: the variable CXX, or what there is."""
    names = (os.environ.get("CXX"), "g++", "c++")
    return next((name for name in names if name and shutil.which(name)), None)


def _cpu_flags() -> str:
    """What Linux says that the CPU can do; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(path: Path) -> None:
    command = compiler()
    if command is None:
        raise UserError("native: there is no C++ compiler; install g++, set CXX, or leave it out")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, then moved: processes that start together do not disturb each other.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled, linked = Path(folder, "decoder.o"), Path(folder, "decoder.so")
        source = FOLDER / MAIN_SOURCE
        _run([command, *COMPILE_FLAGS, str(source), "-o", str(compiled)])
        _run([command, "-shared", str(compiled), "-o", str(linked)])
        linked.replace(path)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(
            f"native: the compiler failed, leave it out, or set CXX: {' '.join(command)}\n{result.stderr}"
        )
