"""Subcommands and the flag --json, as all launchers have them."""

from __future__ import annotations

import argparse

import pytest

from janus_pt.utils.commands import Command, add_json_flag, run_command


def commands(calls: list[argparse.Namespace]) -> dict[str, Command]:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_json_flag(parser, "file for the numbers", "--output", required=True)

    def fail(parser: argparse.ArgumentParser) -> None:
        raise AssertionError("only the command that is named adds its arguments")

    return {
        "measure": Command("measure it", add_arguments, calls.append),
        "other": Command("another thing", fail, calls.append),
    }


@pytest.mark.parametrize("flag", ["--json", "--output"])
def test_the_named_command_runs_and_old_names_of_json_stay(flag: str) -> None:
    calls: list[argparse.Namespace] = []
    run_command("text", commands(calls), ["measure", flag, "out.json"])
    assert [args.json for args in calls] == ["out.json"]


def test_help_lists_the_commands_and_hides_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    run_command("text", commands([]), [])
    listed = capsys.readouterr().out
    assert "measure it" in listed and "another thing" in listed
    with pytest.raises(SystemExit):
        run_command("text", commands([]), ["measure", "--help"])
    assert "--json FILE" in (text := capsys.readouterr().out) and "--output" not in text


@pytest.mark.parametrize("arguments", [["fly"], ["measure"]])
def test_a_wrong_command_line_runs_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    calls: list[argparse.Namespace] = []
    with pytest.raises(SystemExit) as left:
        run_command("text", commands(calls), arguments)
    assert left.value.code == 2 and not calls
    message = capsys.readouterr().err
    assert "'fly'" in message or "--json is required" in message
