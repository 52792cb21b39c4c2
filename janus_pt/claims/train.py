"""Train one cell in its own process: `python -m janus_pt.claims.train --config FILE --resume auto`.

The same as launchers/finetune.py, for where no repository is at hand.
"""

from __future__ import annotations

from janus_pt.checks import read_config
from janus_pt.launch import intended_world_size, parse_training_arguments, run_training
from janus_pt.utils.errors import entry_point
from janus_pt.utils.slurm import adopt_slurm


def main() -> None:
    """Read and check the configuration, then train."""
    # Under srun the world is Slurm's; DeepSpeed reads other variables.
    adopt_slurm()
    arguments = parse_training_arguments(__doc__)
    processes = intended_world_size(arguments)
    config = read_config(arguments.config, arguments.set, processes)
    run_training(config, arguments, processes)


if __name__ == "__main__":
    entry_point(main)
