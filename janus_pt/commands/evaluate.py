"""Decode a task's test set and score it, or score files.

A model on a task, a row for each mode:

    janus-pt evaluate task --model DIR --task glge/squad_qg --data DIR --split test \\
        --mode ar,nar --set nar.iterations=4 --json report.json

Any system's files:

    janus-pt evaluate score --predictions FILE --references FILE \\
        --metrics bleu,chrf,rouge --json scores.json

GLGE's overall score, from the reports of its eight tasks:

    janus-pt evaluate overall --reports R1 … R8 --mode nar --json overall.json
"""

from __future__ import annotations

from janus_pt.utils.commands import module_command

COMMANDS = {
    "task": module_command("janus_pt.tasks.evaluate", "decode a task's split and score it"),
    "score": module_command("janus_pt.tasks.score", "score files of predictions"),
    "overall": module_command("janus_pt.tasks.glge", "GLGE's overall score, from reports"),
}
