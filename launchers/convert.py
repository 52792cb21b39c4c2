"""Convert checkpoints.

For another layout:    python launchers/convert.py checkpoint runs/janus/checkpoints/step_1000
As an exported model:  python launchers/convert.py export runs/janus/checkpoints/step_1000 --output model

The first writes `universal_1000` beside the checkpoint, which training with --resume auto takes when the layout has
changed (it would convert by itself, on one process while all others wait). One process, no accelerator; no more than
one parameter and its optimizer state are in memory together.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from janus_pt.errors import entry_point


def main() -> None:
    """Convert as the arguments say, and name the folder that was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, meaning in (("checkpoint", "for any layout"), ("export", "as an exported model")):
        options = kinds.add_parser(kind, help=meaning)
        options.add_argument("checkpoint", type=Path, help="a folder step_N of a run's checkpoints")
        options.add_argument("--output", type=Path, required=kind == "export", help="the folder to write")
        if kind == "export":
            options.add_argument("--tokenizer", type=Path, help="default: that of the run's corpus")
        else:
            options.add_argument("--workers", type=int, default=1, help="processes that convert")
    arguments = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from janus_pt.train.checkpoint import convert, export  # imports DeepSpeed, which looks at the environment

    if arguments.kind == "checkpoint":
        print(convert(arguments.checkpoint, arguments.output, arguments.workers))
    else:
        print(export(arguments.checkpoint, arguments.output, arguments.tokenizer))


if __name__ == "__main__":
    entry_point(main)
