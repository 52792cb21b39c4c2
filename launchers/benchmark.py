"""Measure. The first argument says what; each has a --help of its own.

python launchers/benchmark.py train --shape large
python launchers/benchmark.py decode --model DIR --input test.en --reference test.de
"""

from __future__ import annotations

import sys
from importlib import import_module

from janus_pt.utils.errors import UserError, entry_point

COMMANDS = {
    "train": (
        "janus_pt.benchmark.train",
        "a training step beside a plain left-to-right one: time, memory, parts",
    ),
    "loss": (
        "janus_pt.benchmark.loss",
        "the fused projection and losses beside the unfused computation",
    ),
    "loader": (
        "janus_pt.benchmark.loader",
        "reading shards and building batches, without training",
    ),
    "growth": (
        "janus_pt.benchmark.growth",
        "the step against length, vocabulary, masked share and size, as plots",
    ),
    "layouts": (
        "janus_pt.planning.layouts",
        "ways to spread a configuration over a cluster, the fastest first",
    ),
    "decode": ("janus_pt.benchmark.decode", "speed and quality of every way of decoding one model"),
}
"""Module of each command, imported only when it is asked for; its `main` takes the arguments that are left."""


def main() -> None:
    """Run the command."""
    told = "\n".join(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items())
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\n{told}")
    elif name not in COMMANDS:
        raise UserError(f"{name}: no such benchmark; there are:\n{told}")
    else:
        import_module(COMMANDS[name][0]).main(arguments)


if __name__ == "__main__":
    entry_point(main)
