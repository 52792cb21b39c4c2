"""Compile and load the device. Imports no torch: torch asks for CUDA hooks once, when it starts."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("libc10.so", "libtorch_cpu.so")


def torch_folder() -> Path:
    """Where torch is installed."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def compile_device(folder: Path) -> Path:
    """Compile `device.cpp` with torch's headers, in some 15 s; the library's path."""
    torch = torch_folder()
    library = folder / "fake_cuda.so"
    source = Path(__file__).with_name("device.cpp")
    include, libraries = torch / "include", torch / "lib"
    command = ["g++", "-O1", "-std=c++20", "-fPIC", "-shared", f"-I{include}", str(source)]
    command += ["-o", str(library), f"-L{libraries}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    return library


def load_device(library: Path) -> None:
    """Put the device into this process, which must not have imported torch."""
    assert "torch" not in sys.modules, "torch has asked for CUDA already"
    # Global, so that torch finds the hooks registered when its own libraries look for them.
    for path in (*(torch_folder() / "lib" / name for name in LIBRARIES), library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
