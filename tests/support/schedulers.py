"""Real schedulers on this machine, for a test: a Ray cluster of several nodes, and Slurm with one node.

Everything runs in the foreground of processes of ours, which end with the test.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.ranks import free_port
from tests.support.runs import environment

SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=10000
MinJobAge=300
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=tiny Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def slurm_is_missing() -> str:
    """Why a test cannot start Slurm; empty if it can."""
    missing = [name for name in SLURM_PROGRAMS if _program(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts jobs: needs root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd; yields the environment in which `sbatch` finds them."""
    # Not pytest's folder: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        ports = (free_port(), free_port())
        text = SLURM_CONF.format(host=socket.gethostname(), ports=ports, folder=folder)
        (folder / "slurm.conf").write_text(text)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        env = {**environment(), "SLURM_CONF": str(folder / "slurm.conf")}
        munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munge += [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "log", "seed")]
        _start(stack, munge, env, folder)
        _wait(folder / "munge.socket")
        _start(stack, ["slurmctld", "-D", "-i"], env, folder)
        _start(stack, ["slurmd", "-D", "-N", socket.gethostname()], env, folder)
        deadline = time.monotonic() + 60
        while "idle" not in _output(["sinfo", "--noheader", "--format=%T"], env):
            logs = "".join(path.read_text() for path in folder.glob("*.out"))
            assert time.monotonic() < deadline, f"Slurm did not start:\n{logs}"
            time.sleep(0.2)
        try:
            yield env
        finally:
            # What slurmd has started is not below it.
            _output(["scancel", "--user=root"], env)
            deadline = time.monotonic() + 60
            while _output(["squeue", "--noheader"], env) and time.monotonic() < deadline:
                time.sleep(0.2)


def _output(command: Sequence[str], env: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60).stdout


def _start(stack: ExitStack, command: Sequence[str], env: dict[str, str], folder: Path) -> int:
    """Start a program, which ends with the stack, and all it has started; its process id."""
    with (folder / f"{command[0]}-{secrets.token_hex(3)}.out").open("w") as output:
        process = subprocess.Popen(
            [_program(command[0]) or command[0], *command[1:]],
            env=env,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )
    stack.callback(process.wait)
    stack.callback(kill_tree, process.pid)
    return process.pid


def kill_tree(pid: int) -> None:
    """`kill -9` of a process and all below it."""
    try:
        process = psutil.Process(pid)
        tree = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def _wait(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


@dataclass
class RayCluster:
    """Ray on several nodes, which are all on this machine."""

    address: str
    nodes: list[int] = field(default_factory=list)
    """Process ids of `ray start`; the first is the head."""


def busy_workers(nodes: Iterable[int]) -> list[psutil.Process]:
    """Processes of these nodes of Ray that run a task of a build now."""
    found = []
    for pid in nodes:
        for process in psutil.Process(pid).children(recursive=True):
            try:
                if process.cmdline()[:1] == ["ray::run_task_in"]:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
    return found


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    """Start a cluster with as many nodes of one core each."""
    with tempfile.TemporaryDirectory(prefix="ray-") as name, ExitStack() as stack:
        cluster = RayCluster(f"127.0.0.1:{free_port()}")
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        ray += ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats"]
        ray += [f"--memory={2**30}", f"--object-store-memory={80 * 2**20}"]
        head = ["--head", f"--port={cluster.address.partition(':')[2]}"]
        head += ["--include-dashboard=false", f"--temp-dir={name}"]
        env = {**environment(), "RAY_DISABLE_IMPORT_WARNING": "1"}
        for number in range(nodes):
            place = [f"--address={cluster.address}"] if number else head
            cluster.nodes.append(_start(stack, [*ray, *place], env, Path(name)))
            _wait_for_nodes(cluster, number + 1)
        yield cluster


def _wait_for_nodes(cluster: RayCluster, number: int) -> None:
    """Until the cluster has as many nodes."""
    code = f"import ray; ray.init('{cluster.address}', log_to_driver=False); print('NODES', len(ray.nodes()))"
    deadline = time.monotonic() + 90
    while f"NODES {number}" not in _output([sys.executable, "-c", code], environment()):
        assert time.monotonic() < deadline, "Ray did not start"
        time.sleep(0.5)
