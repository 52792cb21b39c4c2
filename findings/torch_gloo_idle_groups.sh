#!/usr/bin/env bash
# Each process group on gloo keeps a thread that wakes up a hundred times a second, whether the group is used or not,
# until nothing refers to the group any more. A process that has made many of them is never idle.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import os
import tempfile
import time

import torch.distributed as dist
import torch.multiprocessing as mp

GROUPS, SECONDS = 200, 5


def switches():
    """How often the kernel has begun to run a thread of this process after it had waited."""
    total = 0
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        total += int(lines["voluntary_ctxt_switches"])
    return total


def idle():
    """Times that a thread woke up in a second, and processor time in percent, while nothing is done."""
    before, used = switches(), time.process_time()
    time.sleep(SECONDS)
    return (switches() - before) / SECONDS, (time.process_time() - used) / SECONDS * 100


def rank(number, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    alone = idle()
    groups = [dist.new_group([0, 1], backend="gloo") for _ in range(GROUPS)]
    several = idle()
    dist.barrier()
    if number == 0:
        print(f"one group, idle:    {alone[0]:7.0f} wake-ups a second, {alone[1]:4.1f} % of a core")
        print(f"{len(groups)} more, idle:     {several[0]:7.0f} wake-ups a second, {several[1]:4.1f} % of a core")
        assert several[0] > alone[0] + 20 * GROUPS
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank, args=(folder,), nprocs=2, start_method="fork")
PYTHON
