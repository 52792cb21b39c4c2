"""Distilled corpora: the teacher's outputs, the same however the work is shared or interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from janus_pt.inference.janus_model import JanusModel
from janus_pt.tasks.distill import DistillationRequest, distill
from janus_pt.tokenizer import read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.models import SHAPE, tiny_model, tokenizer_bytes
from tests.support.runs import ROOT, environment, run_script

WORDS = ("slot", "query", "content", "mask", "beam", "length", "token", "pass")
PORTION = 4
OPTIONS = {"mode": "ar", "num_beams": 3, "max_length": 6}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = read_tokenizer(tokenizer_bytes())
    shape: dict[str, Any] = {**SHAPE, "vocab_size": tokenizer.vocab_size, "max_positions": 64}
    folder = tmp_path_factory.mktemp("teacher")
    JanusModel(tiny_model(**shape), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences, some of them twice, one empty, one too long for the model."""
    rng = np.random.default_rng(0)
    lines = [f"the {' '.join(rng.choice(WORDS, rng.integers(1, 5)))}" for _ in range(30)]
    lines[5], lines[17], lines[20] = lines[4], "", "the mask " * 40
    path = tmp_path_factory.mktemp("text") / "train.en"
    path.write_text("\n".join(lines) + "\n")
    return path


def request(teacher: Path, source: Path, **given: Any) -> DistillationRequest:
    return DistillationRequest(
        str(teacher), str(source), **{"options": OPTIONS, "portion": PORTION, **given}
    )


def corpus(folder: Path) -> list[tuple[str, str]]:
    sides = [(folder / f"train.{side}").read_text().split("\n")[:-1] for side in ("src", "tgt")]
    return list(zip(*sides, strict=True))


def expected(teacher: Path, source: Path, n_best: int) -> list[tuple[str, str]]:
    """Sentence by sentence."""
    model, pairs = JanusModel.from_pretrained(teacher), []
    for line in source.read_text().splitlines():
        if line and len(line) < 200:
            outputs = model.generate([line], **OPTIONS, num_return_sequences=n_best)
            texts = [" ".join(one.text.split()) for one in outputs]
            pairs += [
                (line, text)
                for place, text in enumerate(texts)
                if text and text not in texts[:place]
            ]
    return pairs


@pytest.mark.parametrize("n_best", [1, 3])
def test_the_corpus_is_what_the_teacher_writes(
    teacher: Path, source: Path, tmp_path: Path, n_best: int
) -> None:
    model = JanusModel.from_pretrained(teacher)
    assert distill(request(teacher, source, n_best=n_best), model, tmp_path)
    pairs = corpus(tmp_path)
    assert pairs == expected(teacher, source, n_best) and len(pairs) >= 28 * min(2, n_best)


def test_shards_make_the_same_corpus_in_any_order(
    teacher: Path, source: Path, tmp_path: Path
) -> None:
    model, asked = JanusModel.from_pretrained(teacher), request(teacher, source)
    done = [
        distill(asked, model, tmp_path / "shared", shard=(number, 3), batch_size=2)
        for number in (3, 1, 2)
    ]
    assert done == [False, False, True]
    distill(asked, model, tmp_path / "alone")
    assert corpus(tmp_path / "shared") == corpus(tmp_path / "alone")


def test_a_folder_belongs_to_one_request(teacher: Path, source: Path, tmp_path: Path) -> None:
    model = JanusModel.from_pretrained(teacher)
    distill(request(teacher, source), model, tmp_path)
    other = tmp_path / "other.en"
    other.write_text("the mask\n")
    for changed, what in (
        (request(teacher, source, n_best=2), "n_best"),
        (request(teacher, source, options={"mode": "nar"}), "options"),
        (request(teacher, other), "source"),
    ):
        with pytest.raises(
            UserError, match=rf"holds portions made with another {what}; give another --output"
        ):
            distill(changed, model, tmp_path)


DISTILL = """
import os, signal, sys
from pathlib import Path
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tasks.distill import DistillationRequest, distill
teacher, source, output, *last = sys.argv[1:]

def kill_myself(event, arguments):
    if event == "os.rename" and last and str(arguments[1]).endswith(last[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_myself)
request = DistillationRequest(teacher, source, {"mode": "ar", "num_beams": 3, "max_length": 6}, n_best=2, portion=4)
distill(request, JanusModel.from_pretrained(teacher), Path(output))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(teacher: Path, source: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-c", DISTILL, str(teacher), str(source), str(tmp_path / "killed")]
    parts = tmp_path / "killed" / "train.parts"
    killed = subprocess.run([*call, "000003.tgt"], env=environment(), cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9]*.tgt")}
    assert (
        len(kept) == 3
        and (parts / "000003.src").exists()
        and not (tmp_path / "killed" / "train.tgt").exists()
    )
    next(iter(kept)).with_name(".000003.tgt.partial").write_text(
        "half a por"
    )  # as a kill while writing leaves it
    subprocess.run(call, env=environment(), cwd=ROOT, check=True, timeout=120)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert corpus(tmp_path / "killed") == expected(teacher, source, 2)


def test_from_the_command_line_to_a_corpus(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    teacher: Path,
    source: Path,
    tmp_path: Path,
) -> None:
    asked = (
        "--model",
        teacher,
        "--source",
        source,
        "--output",
        tmp_path,
        "--mode",
        "nar",
        "--length-beam",
        3,
    )
    asked = (*asked, "--n-best", 2, "--max-length", 8)
    assert run_script(monkeypatch, "launchers/distill.py", *asked) == 0
    assert "train.src, " in capfd.readouterr().out
    built = (
        "--task",
        "nmt",
        "--data",
        tmp_path,
        "--splits",
        "train",
        "--tokenizer",
        teacher / "tokenizer.model",
    )
    built = (*built, "--output", tmp_path / "corpora", "--workers", 1)
    assert run_script(monkeypatch, "data_prep/build_task.py", *built) == 0
    kept, left_out = map(int, re.findall(r"(\d+) (?:pairs|were)", capfd.readouterr().out))
    assert kept + left_out == len(corpus(tmp_path)) and kept > 20, (
        "a random model writes bytes that are no text"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--shard", "0/2"), "--shard 0/2: write it as I/N"),
        (("--n-best", 2), "num_return_sequences: 2 is more than"),
        (
            ("--n-best", 2, "--mode", "speculative"),
            'num_return_sequences: mode "speculative" has no such option',
        ),
        (("--source", "nowhere"), "nowhere: cannot be read"),
        (("--max-length", 400), "max_length: 400 is more than the 62 tokens"),
    ],
)
def test_mistakes_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    teacher: Path,
    source: Path,
    tmp_path: Path,
    changes: tuple[object, ...],
    message: str,
) -> None:
    asked = ("--model", teacher, "--source", source, "--output", tmp_path, *changes)
    assert run_script(monkeypatch, "launchers/distill.py", *asked) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir()), "the folder is free for the right command"


def test_a_source_with_nothing_to_read_is_refused(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("\n" + "the mask " * 40 + "\n")
    with pytest.raises(
        UserError, match=r"train\.en: every line is empty or too long for the model"
    ):
        distill(
            request(teacher, tmp_path / "train.en"),
            JanusModel.from_pretrained(teacher),
            tmp_path / "out",
        )
