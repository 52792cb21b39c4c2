"""Train a JANUS model.

One process:        python launchers/pretrain.py --config FILE
Two CPU processes:  DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 launchers/pretrain.py --config FILE
GPUs of one node:   deepspeed launchers/pretrain.py --config FILE
Several nodes:      deepspeed --hostfile hosts launchers/pretrain.py --config FILE    (or Slurm: docs/guides/cluster.md)
Any value:          ... --set run.max_steps=1000 --set optimizer.lr=2e-4
After a stop:       ... --resume auto
Plan it:            ... --dry-run --world-size 64
"""

from __future__ import annotations

from janus_pt.checks import read_config
from janus_pt.launch import intended_world_size, parse_training_arguments, run_training
from janus_pt.utils.errors import entry_point
from janus_pt.utils.slurm import adopt_slurm


def main() -> None:
    """Read and check the configuration, then train, or print the plan."""
    adopt_slurm()
    arguments = parse_training_arguments(__doc__)
    processes = intended_world_size(arguments)
    run_training(read_config(arguments.config, arguments.set, processes), arguments, processes)


if __name__ == "__main__":
    entry_point(main)
