"""Launches of Triton kernels, recorded instead of made, and compiled for any GPU by the wheel's ptxas."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

WARP_SIZE = 32
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one launch."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """Of the kernel."""
        return str(self.kernel.__name__)

    def source(self) -> ASTSource:
        """What Triton would compile for these arguments, whose addresses are multiples of 16."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            is_aligned = isinstance(value, Tensor)
            if isinstance(value, Tensor):
                signature[parameter.name] = TYPES[value.dtype]
            elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = "i32"
                is_aligned = value % 16 == 0 and not parameter.do_not_specialize
            if is_aligned:
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)

    def compile(self, capability: int) -> Machine:
        """Compile for a GPU of compute capability `capability`, such as 90."""
        target = GPUTarget("cuda", capability, WARP_SIZE)
        compiled = triton.compile(self.source(), target=target, options=self.options)
        return Machine(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared)


@dataclass(frozen=True)
class Machine:
    """A compiled kernel; `shared` is in bytes."""

    cubin: bytes
    ptx: str
    shared: int

    def usage(self, folder: Path) -> dict[str, int]:
        """Registers, stack and local memory of a thread, as the machine code says: `REG`, `STACK`
        and `LOCAL`. Spilled registers lie on the stack."""
        path = folder / "kernel.cubin"
        path.write_bytes(self.cubin)
        assert nvidia.__file__ is not None
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        output = subprocess.run(
            [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
        ).stdout
        return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", output)}


@contextmanager
def recorded(module: ModuleType) -> Iterator[list[Launch]]:
    """The launches of the kernels of `module` in this block, none of which is made."""
    launches: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction):
                patch.setattr(module, name, _Recorder(kernel, launches))
        yield launches


class _Recorder:
    """Stands for a kernel at its launches."""

    def __init__(self, kernel: JITFunction[Any], launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            names = [parameter.name for parameter in self.kernel.params]
            options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
            arguments = dict(zip(names, args, strict=False)) | kwargs
            assert set(arguments) == set(names)
            self.launches.append(Launch(self.kernel, grid, arguments, options))

        return launch
