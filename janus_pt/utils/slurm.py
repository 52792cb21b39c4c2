"""Slurm's environment in the words of torchrun and DeepSpeed's launcher."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

FIRST_PORT, PORTS = 20000, 10000
"""Slurm gives no port to meet at: one of these, by the job's number."""


def adopt_slurm(environ: MutableMapping[str, str] = os.environ) -> None:
    """Under plain `srun`, add the variables that torchrun and DeepSpeed's launcher set, from Slurm's own.

    Where `RANK` is set another launcher has spoken, and nothing changes; nor does it in the shell of a batch script,
    which has the job's variables but no step's. An address or a port that is given stays.
    """
    in_batch_shell = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    if "RANK" in environ or "SLURM_PROCID" not in environ or in_batch_shell:
        return
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]
    per_node = (
        environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or tasks
    )
    environ.update(
        RANK=environ["SLURM_PROCID"],
        LOCAL_RANK=environ["SLURM_LOCALID"],
        WORLD_SIZE=tasks,
        LOCAL_WORLD_SIZE=str(_tasks_of_node(per_node, int(environ.get("SLURM_NODEID", "0")))),
    )
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST") or "127.0.0.1"
    environ.setdefault("MASTER_ADDR", _first_host(nodes))
    environ.setdefault(
        "MASTER_PORT", str(FIRST_PORT + int(environ.get("SLURM_JOB_ID", "0")) % PORTS)
    )


def _first_host(nodes: str) -> str:
    """The first host of a list like `gpu[003-006,009],login1`."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def _tasks_of_node(counts: str, node: int) -> int:
    """Tasks of one node, from a list like `4(x2),3`: four on each of two nodes, then three."""
    expanded: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        expanded += [int(count)] * int(times or 1)
    return expanded[node]
