"""Two hosts on one machine: network namespaces with an address of their own each, joined by a virtual cable.

Where namespaces are not allowed, two torchrun agents stand for the hosts, at two addresses of the loopback interface.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tests.support.ranks import free_port
from tests.support.runs import ROOT, environment

RANKS_EACH = 2


@dataclass(frozen=True)
class Host:
    """Where a host's processes run (`prefix` of a command line), and its network address and interface."""

    prefix: tuple[str, ...]
    address: str
    interface: str


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Two hosts that reach each other; whatever still runs in their namespaces at the end is killed."""
    names = [f"janus-{os.getpid()}-{number}" for number in (0, 1)]
    hosts = [
        Host(("ip", "netns", "exec", name), f"10.213.7.{n}", f"veth{n}")
        for n, name in enumerate(names, 1)
    ]
    if not _namespaces_allowed(names[0]):
        yield [Host((), f"127.0.0.{number}", "lo") for number in (1, 2)]
        return
    try:
        for name in names:
            _ip("netns", "add", name)
        first, second = ((host.interface, name) for host, name in zip(hosts, names, strict=True))
        _ip(
            "link",
            "add",
            first[0],
            "netns",
            first[1],
            "type",
            "veth",
            "peer",
            "name",
            second[0],
            "netns",
            second[1],
        )
        for host, name in zip(hosts, names, strict=True):
            _ip("-n", name, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", name, "link", "set", interface, "up")
        yield hosts
    finally:
        for name in names:
            listed = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            _kill([int(pid) for pid in listed.stdout.split()])
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _namespaces_allowed(name: str) -> bool:
    if (
        shutil.which("ip") is None
        or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode
    ):
        return False
    _ip("netns", "delete", name)
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def start(
    hosts: Sequence[Host], logs: Sequence[Path], *arguments: str
) -> list[subprocess.Popen[bytes]]:
    """Start a training on all hosts, a torchrun agent and two ranks on each; output goes to `logs`, one a host."""
    port = free_port()
    agents = []
    for number, (host, log) in enumerate(zip(hosts, logs, strict=True)):
        command = [
            *host.prefix, sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}",
            f"--nproc-per-node={RANKS_EACH}", f"--node-rank={number}", f"--master-addr={hosts[0].address}",
            f"--master-port={port}", str(ROOT / "launchers" / "pretrain.py"), *arguments,
        ]  # fmt: skip
        with log.open("wb") as output:
            agents.append(_start(command, host, output))
    return agents


def _start(command: list[str], host: Host, output: IO[bytes]) -> subprocess.Popen[bytes]:
    variables = {**environment(), "GLOO_SOCKET_IFNAME": host.interface}
    return subprocess.Popen(command, env=variables, cwd=ROOT, stdout=output, stderr=output)


def kill_host(agent: subprocess.Popen[bytes]) -> None:
    """`kill -9` an agent, if it still runs, and everything it started. The host's kernel closes the connections."""
    if agent.poll() is not None:
        return
    processes = psutil.Process(agent.pid).children(recursive=True)
    _kill([agent.pid, *(process.pid for process in processes)])
    agent.wait(30)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
