"""Train a model on a corpus, from new weights or from an exported model (run.init_from).

  one process:         janus-pt pretrain --config FILE
  GPUs of one node:    janus-pt pretrain --config FILE --num-gpus 8
  two CPU processes:   DS_ACCELERATOR=cpu janus-pt pretrain --config FILE --num-gpus 2
  several nodes:       janus-pt pretrain --config FILE --hostfile hosts
  any value:           … --set run.max_steps=1000 --set optimizer.lr=2e-4
  after a stop:        … --resume auto
  plan it:             … --dry-run --world-size 64

Several processes are started by DeepSpeed's launcher. With flags of its own, with torchrun or under
Slurm, start the script: deepspeed launchers/pretrain.py --config FILE, or the module:
deepspeed --module --no_local_rank janus_pt pretrain --config FILE

Every key of the file: docs/reference/configuration.md
"""

from __future__ import annotations

import argparse

from janus_pt.commands.training import add_arguments, train

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Train in this process or in those it starts, or print the plan."""
    train("pretrain", args)
