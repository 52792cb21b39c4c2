"""`janus-pt`: its help teaches, its completion knows every command, scripts are the same commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from janus_pt.commands.completion import complete_paths
from janus_pt.commands.main import COMMANDS, make_parser
from janus_pt.utils.commands import Parser
from tests.support.runs import ROOT, run_script


@pytest.fixture(scope="module")
def parser() -> Parser:
    """With the arguments of all commands, as completion needs it."""
    parser = make_parser()
    complete_paths(parser)
    return parser


def leaves(parser: Parser) -> list[Parser]:
    """The commands that do work."""
    children = parser.subparsers.values()
    return [leaf for child in children for leaf in leaves(child)] if children else [parser]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_a_page(parser: Parser, name: str) -> None:
    command = parser.subparsers[name]
    assert command.description is not None
    examples = [line for line in command.description.splitlines() if f"janus-pt {name}" in line]
    assert examples and all(line.startswith("  ") for line in examples)
    assert name == "completion" or (ROOT / command.guide).is_file()


def test_examples_of_the_help_are_command_lines(parser: Parser) -> None:
    """Examples with all arguments parse; those with an ellipsis or a redirection are for people."""
    commands = [parser, *parser.subparsers.values(), *leaves(parser)]
    text = "\n".join(command.description or "" for command in commands)
    # Some lines begin with a label; prose is not indented.
    examples = [words.split() for words in re.findall(r"^  .*?janus-pt (.*)", text, re.MULTILINE)]
    whole = [words for words in examples if not set("…\\<>(|") & set("".join(words))]
    assert len(whole) > 20
    for words in whole:
        parser.parse_args(words)


def test_bash_completes_commands_flags_and_values(parser: Parser, tmp_path: Path) -> None:
    import shtab

    script = tmp_path / "completion.bash"
    script.write_text(shtab.complete(parser, shell="bash"))

    def candidates(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        code += f'_shtab_janus_pt janus-pt "{words[-1]}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert candidates("janus-pt", "pre") == {"prep", "pretrain"}
    assert candidates("janus-pt", "prep", "build") == {"build-shards", "build-task"}
    assert candidates("janus-pt", "generate", "--mode", "sp") == {"speculative"}
    assert candidates("janus-pt", "finetune", "--res") == {"--resume"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-gpus", "0"], "--num-gpus must be at least 1, but is 0"),
        (["--num-gpus", "2", "--dry-run"], "plan in one process"),
        (["--num-gpus", "2", "--world-size", "2"], "plan in one process"),
        (["--world-size", "2"], "to plan for with --dry-run"),
    ],
)
def test_wrong_flags_of_processes_start_none(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    call = ("launchers/pretrain.py", "--config", "janus_tiny", *flags)
    assert run_script(monkeypatch, *call) == 2
    assert message in capsys.readouterr().err


def test_the_processes_get_all_flags_of_their_command(
    monkeypatch: pytest.MonkeyPatch, parser: Parser
) -> None:
    """A real job is started in tests/packaging; here no flag may be lost on the way."""
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, call: calls.append(call))
    given = ["--config", "a b.json", "--set", "x=1", "--set", "y=[1, 2]", "--resume", "auto"]
    given += ["--replay", "dump"]
    run = ("launchers/finetune.py", *given, "--num_accelerators", 2, "--hostfile", "hosts")
    assert run_script(monkeypatch, *run) == 0
    words = calls[0][calls[0].index("janus_pt") + 1 :]
    assert vars(parser.parse_args(words)) == vars(parser.parse_args(["finetune", *given]))
    launcher = calls[0][: calls[0].index("janus_pt")]
    assert "--num_gpus=2" in launcher and "--hostfile=hosts" in launcher


def test_scripts_of_a_checkout_are_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = [*ROOT.glob("launchers/*.py"), *ROOT.glob("data_prep/*.py")]
    assert len(scripts) > 10
    for script in scripts:
        assert run_script(monkeypatch, str(script.relative_to(ROOT)), "--help") == 0
        assert capsys.readouterr().out.startswith("usage: janus-pt ")
        # The code is in the package: a wheel has no scripts.
        assert len(script.read_text().splitlines()) < 10
