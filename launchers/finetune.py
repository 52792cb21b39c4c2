"""Fine-tune an exported model on pairs, or train one on pairs from scratch.

    python launchers/finetune.py --config configs/summary_tiny.json --set run.init_from=runs/pretrain/export

The corpus is built from parallel files by data_prep/build_shards.py --source … --target …, with the model's own
tokenizer. Keys of `model` that the configuration omits are taken from the export. Several processes, resuming and
--set work as in launchers/pretrain.py.
"""

from __future__ import annotations

from janus_pt.checks import read_config
from janus_pt.launch import intended_world_size, parse_training_arguments, run_training
from janus_pt.utils.errors import entry_point
from janus_pt.utils.slurm import adopt_slurm


def main() -> None:
    """Read and check the configuration, then fine-tune, or print the plan."""
    adopt_slurm()
    arguments = parse_training_arguments(__doc__)
    processes = intended_world_size(arguments)
    run_training(read_config(arguments.config, arguments.set, processes), arguments, processes)


if __name__ == "__main__":
    entry_point(main)
