"""Convert checkpoints.

For another layout:    python launchers/convert.py checkpoint runs/janus/checkpoints/step_1000
As an exported model:  python launchers/convert.py export runs/janus/checkpoints/step_1000 --output model
The mean of several:   python launchers/convert.py export runs/janus --best 5 --output model

The first writes `universal_1000` beside the checkpoint, which training with --resume auto takes when the layout has
changed (it would convert by itself, on one process while all others wait). One process, no accelerator; no more than
one parameter and its optimizer state are in memory together, of a mean one parameter of each checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from janus_pt.utils.errors import entry_point


def main() -> None:
    """Convert as the arguments say, and name the folder that was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    options = kinds.add_parser("checkpoint", help="for any layout")
    options.add_argument("checkpoint", type=Path, help="a folder step_N of a run's checkpoints")
    options.add_argument(
        "--output", type=Path, help="the folder to write (default: universal_N beside it)"
    )
    options.add_argument("--workers", type=int, default=1, help="processes that convert")
    options = kinds.add_parser("export", help="as an exported model")
    options.add_argument(
        "folder", type=Path, nargs="+", help="folders step_N; with --last or --best that of the run"
    )
    number = options.add_mutually_exclusive_group()
    number.add_argument(
        "--last", type=int, metavar="K", help="the mean of the run's last K checkpoints"
    )
    number.add_argument(
        "--best", type=int, metavar="K", help="the mean of the K with the best validations"
    )
    options.add_argument("--output", type=Path, required=True, help="the folder to write")
    options.add_argument("--tokenizer", type=Path, nargs="+", default=[], metavar="FILE",
        help="default: that of the run's corpus; sources with one of their own: both, theirs last")  # fmt: skip
    given = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Imported here: both import DeepSpeed, which looks at the environment.
    if given.kind == "checkpoint":
        from janus_pt.checkpoint.restore import convert

        print(convert(given.checkpoint, given.output, given.workers))
    else:
        from janus_pt.checkpoint.average import export_mean, select_checkpoints

        checkpoints = select_checkpoints(given.folder, given.last, given.best)
        print(export_mean(checkpoints, given.output, given.tokenizer))


if __name__ == "__main__":
    entry_point(main)
