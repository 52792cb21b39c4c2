#!/usr/bin/env bash
# Each gloo group opens connections of its own to all of its ranks when it is made: every further group of N
# ranks costs each process N + 3 open files, used or not.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import json
import os
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp


def count(rank, size):
    store = dist.FileStore(f"store{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    open_files = []
    for _ in range(3):
        dist.new_group()
        open_files.append(len(os.listdir("/proc/self/fd")))
    Path(f"files{size}-{rank}").write_text(json.dumps(open_files))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for size in (2, 4):
        mp.spawn(count, (size,), nprocs=size)
        first, second, third = json.loads(Path(f"files{size}-0").read_text())
        print(f"{size} ranks, open files after groups 1, 2 and 3: {first}, {second}, {third}")
        assert third - second == second - first == size + 3
PYTHON
