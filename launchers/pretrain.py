"""Train a JANUS model.

One process:        python launchers/pretrain.py --config FILE
Two CPU processes:  DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 launchers/pretrain.py --config FILE
GPUs of one node:   deepspeed launchers/pretrain.py --config FILE
Several nodes:      deepspeed --hostfile hosts launchers/pretrain.py --config FILE
Any value:          ... --set run.max_steps=1000 --set optimizer.lr=2e-4
After a stop:       ... --resume auto
"""

from __future__ import annotations

from janus_pt.config_file import read_config
from janus_pt.errors import entry_point
from janus_pt.launch import parse_training_arguments, run_training, world_size


def main() -> None:
    """Read and check the configuration, then train, or print the plan."""
    arguments = parse_training_arguments(__doc__)
    run_training(read_config(arguments.config, arguments.set, world_size()), arguments)


if __name__ == "__main__":
    entry_point(main)
