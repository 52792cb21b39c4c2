"""The null GPU's counters, from inside a process that runs under it."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

LIBRARY = ctypes.CDLL(None)
"""The process itself: the stand-ins were loaded before all else."""
OPERATIONS = (
    "launches",
    "products",
    "triton_launches",
    "graph_launches",
    "memsets",
    "copies_to_device",
    "copies_to_host",
    "copies_on_device",
)
"""Counters of what the host gives the device to do, one by one."""
NCCL_TYPES = (
    ("int8", 1),
    ("uint8", 1),
    ("int32", 4),
    ("uint32", 4),
    ("int64", 8),
    ("uint64", 8),
    ("float16", 2),
    ("float32", 4),
    ("float64", 8),
    ("bfloat16", 2),
    ("float8_e4m3", 1),
    ("float8_e5m2", 1),
)
"""`ncclDataType_t` by its number: name and bytes."""
MOST_KERNELS = 20_000

Counts = dict[str, int]


def _names() -> list[str]:
    names = LIBRARY.null_gpu_counter_names
    names.restype = ctypes.c_char_p
    return str(names().decode()).split()


def counts() -> Counts:
    """All counters since the process began."""
    read = LIBRARY.null_gpu_counters
    read.restype = ctypes.POINTER(ctypes.c_long)
    return dict(zip(_names(), read(), strict=False))


def since(before: Counts) -> Counts:
    """What was added to the counters after `before` was read."""
    return {name: now - before[name] for name, now in counts().items()}


def operations(counted: Counts) -> int:
    """Operations on the device: kernels, products, copies, memsets; a CUDA graph is one."""
    return sum(counted[name] for name in OPERATIONS)


@dataclass(frozen=True)
class Transfer:
    """A call of NCCL: elements times their width are what the call's own count says."""

    kind: str
    count: int
    dtype: str
    bytes: int
    ranks: int
    """Of the communicator; 0 if it has none yet."""
    peer: int
    """The other rank of `send` and `recv`, else -1."""


class _Call(ctypes.Structure):
    """As `struct nccl_call` in nccl.c."""

    _fields_ = (
        ("kind", ctypes.c_char * 24),
        ("count", ctypes.c_long),
        ("type", ctypes.c_int),
        ("ranks", ctypes.c_int),
        ("peer", ctypes.c_int),
    )


def transfers() -> Iterator[Transfer]:
    """NCCL's calls since `forget_transfers`, in order."""
    number = ctypes.c_int()
    read = LIBRARY.null_gpu_nccl_calls
    read.restype = ctypes.POINTER(_Call)
    calls = read(ctypes.byref(number))
    for call in calls[: number.value]:
        dtype, width = NCCL_TYPES[call.type]
        yield Transfer(
            call.kind.decode(), call.count, dtype, call.count * width, call.ranks, call.peer
        )


def forget_transfers() -> None:
    """Empty the list of NCCL's calls."""
    LIBRARY.null_gpu_forget_nccl_calls()


def kernels() -> Counter[str]:
    """Launches by the kernel's name since the last call. Counted with NULL_GPU_KERNEL_NAMES=1 only."""
    names = (ctypes.c_char_p * MOST_KERNELS)()
    launches = (ctypes.c_long * MOST_KERNELS)()
    found = LIBRARY.null_gpu_kernels(names, launches, MOST_KERNELS)
    return Counter({(names[i] or b"").decode(): launches[i] for i in range(found)})
