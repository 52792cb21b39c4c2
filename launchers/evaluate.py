"""Decode a task's test set and score it, or score files.

A model on a task, a row for each mode:

    python launchers/evaluate.py task --model DIR --task glge/squad_qg --data DIR --split test \\
        --mode ar,nar --set nar.iterations=4 --json report.json

Any system's files:

    python launchers/evaluate.py score --predictions FILE --references FILE \\
        --metrics bleu,chrf,rouge --json scores.json

GLGE's overall score, from the reports of its eight tasks:

    python launchers/evaluate.py overall --reports R1 … R8 --mode nar --json overall.json
"""

from __future__ import annotations

import sys

from janus_pt.utils.commands import module_command, run_command
from janus_pt.utils.errors import entry_point

COMMANDS = {
    "task": module_command("janus_pt.tasks.evaluate", "decode a task's split and score it"),
    "score": module_command("janus_pt.tasks.score", "score files of predictions"),
    "overall": module_command("janus_pt.tasks.glge", "GLGE's overall score, from reports"),
}


def main() -> None:
    """Run the command."""
    arguments = sys.argv[1:]
    # The flags of `task` may come without it, as they did before it had a name.
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments = ["task", *arguments]
    run_command(__doc__, COMMANDS, arguments)


if __name__ == "__main__":
    entry_point(main)
