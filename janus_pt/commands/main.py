"""`janus-pt`: everything a user runs, a command each."""

from __future__ import annotations

import sys

from janus_pt import __version__
from janus_pt.utils.commands import Parser, add_commands, module_command, module_group, run_command
from janus_pt.utils.errors import entry_point

DESCRIPTION = """\
Sequence-to-sequence models that decode both ways: left to right, and all at once.

  janus-pt demo --short                                         all of it on one small machine
  janus-pt prep train-tokenizer --input books.jsonl --output tokenizer.model
  janus-pt prep build-shards --input books.jsonl --tokenizer tokenizer.model --output corpus
  janus-pt pretrain --config janus_base --num-gpus 8
  janus-pt generate --model runs/janus_base/export --mode nar < in.txt
"""
EPILOG = """\
'janus-pt COMMAND --help' explains a command with examples. A mistake ends with exit code 2 and one
message. Guides: docs/guides of the sources.
"""
COMMANDS = {
    "prep": module_group("janus_pt.commands.prep", "text to tokenizers and corpora"),
    "pretrain": module_command("janus_pt.commands.pretrain", "train a model on a corpus"),
    "finetune": module_command("janus_pt.commands.finetune", "train a model on pairs"),
    "generate": module_command("janus_pt.commands.generate", "decode text, line by line"),
    "evaluate": module_group("janus_pt.commands.evaluate", "decode a task and score it"),
    "serve": module_command("janus_pt.commands.serve", "serve a model over HTTP"),
    "convert": module_group(
        "janus_pt.commands.convert", "checkpoints to other layouts and formats"
    ),
    "distill": module_command("janus_pt.commands.distill", "a teacher's outputs as a corpus"),
    "benchmark": module_group("janus_pt.commands.benchmark", "measure training and decoding"),
    "claims": module_command("janus_pt.commands.claims", "put the paper's claims to the test"),
    "completion": module_command("janus_pt.commands.completion", "a shell's completion script"),
    "demo": module_command("janus_pt.commands.demo", "the whole system on one small machine"),
}


def make_parser() -> Parser:
    """The parser of all commands; a command's own arguments are added when it is named."""
    parser = Parser(prog="janus-pt", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"janus_pt {__version__}")
    add_commands(parser, COMMANDS)
    return parser


def main(*words: str) -> None:
    """Run the command line.

    Args:
        words: stand before this process's arguments; a script of one command gives its name.
    """
    entry_point(lambda: run_command(make_parser(), [*words, *sys.argv[1:]]))
