"""The demo's last words: the table, the examples and how to go on. CI runs the demo itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_pt.commands.demo_spoken import (
    BEAM,
    GREEDY,
    NAR,
    WAYS,
    nearest_targets,
    print_examples,
    print_next_steps,
    quality_table,
)
from janus_pt.generate.modes import check_options
from janus_pt.tasks.reading import TaskSplit

TEST = TaskSplit(["1 Mar 2024", "2 Mar 2024"], ["the first of march", "the second of march"])
TRAIN = TaskSplit(["1 Apr 1924", "2 Mar 2023"], ["the first of april", "the second of march"])


def test_every_way_is_one_that_the_model_has() -> None:
    for way in WAYS.values():
        check_options(way.mode, **way.options)
    assert WAYS[NAR].flags == ["--mode", "nar", "--iterations", "4", "--length-beam", "1"]


def test_the_baseline_is_the_most_similar_training_example() -> None:
    assert nearest_targets(TEST, TRAIN) == ["the second of march", "the second of march"]


def test_the_table_has_quality_and_speed() -> None:
    outputs = {name: TEST.targets for name in WAYS} | {NAR: [TEST.targets[0], "the third of march"]}
    speeds = {name: 20.0 for name in WAYS} | {BEAM: 10.0, NAR: 45.0}
    lines = quality_table(TEST, nearest_targets(TEST, TRAIN), outputs, speeds).splitlines()
    rows = {line.split("  ")[0].strip(): line.split() for line in lines}
    # Of the eight words of the references one is wrong: 12.5 %.
    assert rows[NAR][-6:] == ["50.0", "%", "12.5", "%", "45.0", "4.5x"]
    assert rows[BEAM][-6:] == ["100.0", "%", "0.0", "%", "10.0", "1.0x"]
    assert rows["nearest training example"][-4:] == ["50.0", "%", "12.5", "%"]


def test_examples_say_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {GREEDY: TEST.targets, NAR: ["the first of may", TEST.targets[1]]}
    test = TaskSplit(TEST.sources * 3, TEST.targets * 3)
    print_examples(test, {name: [*texts] * 3 for name, texts in outputs.items()})
    shown = capsys.readouterr().out
    assert shown.count("written") == 5 and shown.count("wrong") == 3
    print_next_steps(Path("runs/model"))
    assert capsys.readouterr().out.endswith("$ janus-pt serve --model runs/model\n")
