"""Subcommands and flags, written in the same way by all launchers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """A subcommand of a launcher.

    Attributes:
        help: one line for the launcher's --help.
        add_arguments: adds the command's arguments to its parser.
        run: does the work.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def module_command(module: str, help_text: str) -> Command:
    """A command by the functions `add_arguments` and `run` of a module, imported when called.

    Some modules take seconds to import, and the memory of some would be measured with another's.
    """

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        import_module(module).add_arguments(parser)

    def run(args: argparse.Namespace) -> None:
        import_module(module).run(args)

    return Command(help_text, add_arguments, run)


def run_command(
    description: str | None, commands: Mapping[str, Command], argv: Sequence[str] | None = None
) -> None:
    """Run the subcommand that the command line names first.

    Args:
        argv: arguments without the program's name; default: this process's.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    named = arguments[0] if arguments else ""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        # The others only need their line in the help.
        if name == named:
            command.add_arguments(subparser)
    if not arguments:
        parser.print_help()
        return
    args = parser.parse_args(arguments)
    commands[args.command].run(args)


def add_json_flag(
    parser: argparse.ArgumentParser, help_text: str, *aliases: str, required: bool = False
) -> None:
    """Add `--json FILE`, every launcher's flag for a file of numbers.

    Args:
        aliases: older names of the flag: accepted, but not shown.
    """
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--json", metavar="FILE", help=help_text)
    for alias in aliases:
        group.add_argument(alias, dest="json", help=argparse.SUPPRESS)
