"""Subcommands and the flag --json, as all launchers have them."""

from __future__ import annotations

import argparse

import pytest

from janus_pt.utils.commands import Command, Parser, add_commands, add_json_flag, run_command


def commands(calls: list[argparse.Namespace]) -> dict[str, Command]:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_json_flag(parser, "file for the numbers", "--output", required=True)

    def fail(parser: argparse.ArgumentParser) -> None:
        raise AssertionError("only the command that is named adds its arguments")

    return {
        "measure": Command("measure it", add_arguments, calls.append),
        "other": Command("another thing", fail, calls.append),
    }


def run(calls: list[argparse.Namespace], arguments: list[str]) -> None:
    parser = Parser(prog="tool", description="text")
    add_commands(parser, commands(calls))
    run_command(parser, arguments)


@pytest.mark.parametrize("flag", ["--json", "--output"])
def test_the_named_command_runs_and_old_names_of_json_stay(flag: str) -> None:
    calls: list[argparse.Namespace] = []
    run(calls, ["measure", flag, "out.json"])
    assert [args.json for args in calls] == ["out.json"]


def test_help_lists_the_commands_and_hides_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    run([], [])
    listed = capsys.readouterr().out
    assert "measure it" in listed and "another thing" in listed
    with pytest.raises(SystemExit):
        run([], ["measure", "--help"])
    assert "--json FILE" in (text := capsys.readouterr().out) and "--output" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "there is no command 'fly'; commands: measure, other"),
        (["measur"], "there is no command 'measur'; did you mean measure? "),
        (["measure"], "--json is required"),
        (["measure", "--jsn", "b"], "arguments: --jsn; did you mean --json?"),
        (["measure", "--json=a", "--jsn", "b"], "arguments: --jsn; did you mean --json?"),
        (["measure", "--json=a", "--zzz"], "arguments: --zzz ('tool measure --help' lists"),
    ],
)
def test_a_wrong_command_line_runs_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    calls: list[argparse.Namespace] = []
    with pytest.raises(SystemExit) as left:
        run(calls, arguments)
    assert left.value.code == 2 and not calls
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1
