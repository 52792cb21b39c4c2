"""Fine-tune an exported model on pairs, or train one on pairs from scratch.

  janus-pt finetune --config summary_tiny --set run.init_from=runs/pretrain/export

The corpus is built from parallel files by 'janus-pt prep build-shards --source … --target …', with
the model's own tokenizer. Keys of 'model' that the configuration omits are taken from the export.
Several processes, --resume and --set work as in 'janus-pt pretrain'.

Every key of the file: docs/reference/configuration.md
"""

from __future__ import annotations

import argparse

from janus_pt.commands.training import add_arguments, train

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Fine-tune in this process or in those it starts, or print the plan."""
    train("finetune", args)
