"""`janus-pt`: everything a user runs, a command each."""

from __future__ import annotations

import sys

from janus_pt import __version__
from janus_pt.utils.commands import Parser, add_commands, module_command, module_group, run_command
from janus_pt.utils.errors import entry_point

DESCRIPTION = """\
Sequence-to-sequence models that decode both ways: left to right, and all at once.

  janus-pt demo --short
  janus-pt prep train-tokenizer --input books.jsonl --output tokenizer.model
  janus-pt prep build-shards --input books.jsonl --tokenizer tokenizer.model --output corpus
  janus-pt pretrain --config janus_base --num-gpus 8
  janus-pt generate --model runs/janus_base/export --mode nar < in.txt
  janus-pt convert huggingface --model bart --output mine
"""
EPILOG = """\
'janus-pt COMMAND --help' explains a command with examples. A mistake ends with exit code 2 and one
message. The guides it names are pages of the source distribution.
"""
GUIDES = "docs/guides"
COMMANDS = {
    "prep": module_group(
        "janus_pt.commands.prep", "text to tokenizers and corpora", f"{GUIDES}/corpora.md"
    ),
    "pretrain": module_command(
        "janus_pt.commands.pretrain", "train a model on a corpus", f"{GUIDES}/cluster.md"
    ),
    "finetune": module_command(
        "janus_pt.commands.finetune", "train a model on pairs", f"{GUIDES}/finetuning.md"
    ),
    "generate": module_command(
        "janus_pt.commands.generate", "decode text, line by line", f"{GUIDES}/decoding.md"
    ),
    "evaluate": module_group(
        "janus_pt.commands.evaluate", "decode a task and score it", f"{GUIDES}/tasks.md"
    ),
    "serve": module_command(
        "janus_pt.commands.serve", "serve a model over HTTP", f"{GUIDES}/decoding.md"
    ),
    "convert": module_group(
        "janus_pt.commands.convert",
        "checkpoints to other layouts and formats",
        f"{GUIDES}/other_tools.md",
    ),
    "distill": module_command(
        "janus_pt.commands.distill", "a teacher's outputs as a corpus", f"{GUIDES}/tasks.md"
    ),
    "benchmark": module_group(
        "janus_pt.commands.benchmark",
        "measure training and decoding",
        "docs/results/training_speed.md",
    ),
    "gpu-check": module_command(
        "janus_pt.commands.gpu_check",
        "check and measure the GPUs of a node",
        f"{GUIDES}/cluster.md",
    ),
    "claims": module_command(
        "janus_pt.commands.claims", "put the paper's claims to the test", "docs/results/claims.md"
    ),
    "demo": module_command(
        "janus_pt.commands.demo", "the whole system on one small machine", "README.md"
    ),
    "completion": module_command("janus_pt.commands.completion", "a shell's completion script"),
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
