"""Commands and flags, written in one way; a command's modules are imported when it is named."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from janus_pt.utils.suggest import did_you_mean

FLAG = re.compile(r"--[a-z][\w-]*")


class Parser(argparse.ArgumentParser):
    """A parser that gets its arguments when it is first used, and says what a misspelt name may mean.

    Modules take seconds to import, and most command lines name one command: the others need only
    their line in the help.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Descriptions hold examples, whose lines must stay.
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, **{"formatter_class": layout, **kwargs})
        self.fill: Callable[[], None] | None = None
        self.subparsers: dict[str, Parser] = {}
        self.guide = ""

    def complete(self) -> None:
        """Add the arguments, unless that has been done."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """As argparse's, but unknown names are errors here, where the known ones are known."""
        self.complete()
        arguments = sys.argv[1:] if args is None else list(args)
        if self.subparsers and arguments and not arguments[0].startswith("-"):
            self._check_command(arguments[0])
        if not self.subparsers:
            self._check_flags(arguments)
        namespace, unknown = super().parse_known_args(arguments, namespace)
        if unknown:
            self._refuse(unknown)
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """End with one message. The usage, of dozens of lines for some commands, is in --help."""
        self.exit(2, f"error: {message} ('{self.prog} --help' lists what there is)\n")

    def _check_command(self, name: str) -> None:
        if name not in self.subparsers:
            suggestion = did_you_mean(name, self.subparsers)
            listed = ", ".join(self.subparsers)
            self.error(f"there is no command {name!r}; {suggestion}commands: {listed}")

    def _check_flags(self, arguments: Sequence[str]) -> None:
        """Before argparse, to which a misspelt flag is a missing one."""
        flags = [word.partition("=")[0] for word in arguments]
        # Beginnings of flags are accepted in their place.
        known = tuple(self._option_string_actions)
        unknown = [
            flag
            for flag in flags
            if FLAG.fullmatch(flag) and not any(name.startswith(flag) for name in known)
        ]
        if unknown:
            self._refuse(unknown)

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        flag = unknown[0].partition("=")[0]
        suggestion = did_you_mean(flag, FLAG.findall(self.format_help())).rstrip()
        message = f"unrecognized arguments: {' '.join(unknown)}"
        self.error(f"{message}; {suggestion}" if suggestion else message)


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        help: one line for the list of commands.
        add_arguments: adds the command's arguments to its parser, when it is named.
        run: does the work.
        guide: page of the documentation, for the command's help; default: its group's.
    """

    help: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]
    guide: str = ""


def module_command(module: str, help_text: str, guide: str = "") -> Command:
    """A command by the functions `add_arguments` and `run` of a module, imported when called.

    The module's docstring is the description in the command's help. Some modules take seconds to
    import, and the memory of some would be measured with another's.
    """

    def add_arguments(parser: Parser) -> None:
        loaded = import_module(module)
        parser.description = loaded.__doc__
        loaded.add_arguments(parser)

    def run(args: argparse.Namespace) -> None:
        import_module(module).run(args)

    return Command(help_text, add_arguments, run, guide)


def module_group(module: str, help_text: str, guide: str = "") -> Command:
    """A command with commands of its own, by the table `COMMANDS` of a module."""

    def add_arguments(parser: Parser) -> None:
        loaded = import_module(module)
        parser.description = loaded.__doc__
        add_commands(parser, loaded.COMMANDS)

    def run(args: argparse.Namespace) -> None:
        raise AssertionError("the parser of a group runs one of its commands")

    return Command(help_text, add_arguments, run, guide)


def add_commands(parser: Parser, commands: Mapping[str, Command]) -> None:
    """Add subcommands; the one that the command line names sets `run` in the arguments.

    Without a name the parser shows its help.
    """
    parser.set_defaults(run=lambda args: parser.print_help())
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        subparser.guide = command.guide or parser.guide
        subparser.epilog = f"Guide: {subparser.guide}" if subparser.guide else None
        subparser.fill = partial(_fill, subparser, command)
        parser.subparsers[name] = subparser


def _fill(parser: Parser, command: Command) -> None:
    # First: a group's own default takes its place.
    parser.set_defaults(run=command.run)
    command.add_arguments(parser)


def run_command(parser: Parser, argv: Sequence[str] | None = None) -> None:
    """Run the command that the command line names.

    Args:
        parser: has the commands, by `add_commands`.
        argv: arguments without the program's name; default: this process's.
    """
    args = parser.parse_args(argv)
    # Taken out: what is left is what the user gave.
    run = vars(args).pop("run")
    run(args)


def add_json_flag(
    parser: argparse.ArgumentParser, help_text: str, *aliases: str, required: bool = False
) -> None:
    """Add `--json FILE`, every command's flag for a file of numbers.

    Args:
        aliases: older names of the flag: accepted, but not shown.
    """
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--json", metavar="FILE", help=help_text)
    for alias in aliases:
        group.add_argument(alias, dest="json", help=argparse.SUPPRESS)
