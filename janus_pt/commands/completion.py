"""Print a shell's completion script: commands, flags, their values and file names.

  janus-pt completion bash > ~/.local/share/bash-completion/completions/janus-pt
  janus-pt completion zsh > ~/.zfunc/_janus-pt      (a folder of fpath)

The script knows all there is, so that completing starts no Python, which would import torch. Write
it again after an update.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from janus_pt.utils.commands import Parser

FILES = ("FILE", "FOLDER", "DIR", "DUMP")
"""Placeholders of arguments that are paths."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The argument of `completion`."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    # Imported here: that module names this one.
    from janus_pt.commands.main import make_parser

    parser = make_parser()
    complete_paths(parser)
    print(shtab.complete(parser, shell=args.shell))


def complete_paths(parser: Parser) -> None:
    """Let all arguments that are paths, of the parser and of its commands, be completed as such."""
    parser.complete()
    for action in parser._actions:
        if action.type is Path or action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    for subparser in parser.subparsers.values():
        complete_paths(subparser)
