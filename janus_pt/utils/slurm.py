"""Slurm's environment in the words of torchrun and DeepSpeed's launcher."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

FIRST_PORT = 20000
PORTS = 10000
"""Slurm gives the ranks no port: they take one of these, by the job's number."""


def adopt_slurm(environ: MutableMapping[str, str] = os.environ) -> None:
    """Under plain `srun`, add the variables that torchrun and DeepSpeed's launcher set, from Slurm's own.

    If `RANK` is set, another launcher has set them, and nothing changes; nor does it in the shell of a batch script,
    which has the variables of the job but not of a step. An address or a port that is set stays.
    """
    in_batch_shell = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    if "RANK" in environ or "SLURM_PROCID" not in environ or in_batch_shell:
        return
    # The step's variables first: a step may have fewer tasks and nodes than its job.
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    node = int(environ.get("SLURM_NODEID", "0"))
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    environ["WORLD_SIZE"] = tasks
    environ["LOCAL_WORLD_SIZE"] = str(_tasks_of_node(per_node or tasks, node))
    # All ranks must agree on address and port without a word: both follow from the job alone.
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST") or "127.0.0.1"
    environ.setdefault("MASTER_ADDR", _first_host(nodes))
    # By the job's number, so that two jobs on one node seldom meet.
    port = FIRST_PORT + int(environ.get("SLURM_JOB_ID", "0")) % PORTS
    environ.setdefault("MASTER_PORT", str(port))


def _first_host(nodes: str) -> str:
    """The first host of a list like `gpu[003-006,009],login1`."""
    # Commas inside brackets separate numbers, not hosts.
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def _tasks_of_node(counts: str, node: int) -> int:
    """Tasks of one node, from a list like `4(x2),3`: four on each of two nodes, then three."""
    expanded: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        expanded += [int(count)] * int(times or 1)
    return expanded[node]
