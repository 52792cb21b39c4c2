"""The comparison of objectives: what is planned, and a run of it that is killed, goes on, and tells the truth."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from janus_pt.claims.compare import baseline_of, compare
from janus_pt.claims.data import Data
from janus_pt.claims.decode import result_file
from janus_pt.claims.language import ADJECTIVES, NOUNS, VERBS, made_up_pairs
from janus_pt.claims.page import render
from janus_pt.claims.plan import (
    SCALES,
    Cell,
    common_changes,
    last_value,
    parse_systems,
    plan_cells,
)
from janus_pt.claims.recipes import DEFAULT_RECIPE, RECIPES
from janus_pt.claims.ways import ways_of
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.utils.errors import UserError
from tests.support.models import tokenizer_bytes
from tests.support.runs import ROOT, environment, run_script


def cells(
    *systems: list[str], output: Path = Path("out"), seeds: tuple[int, ...] = (1, 2)
) -> list[Cell]:
    data = Data("nmt", output / "data", None, ("train", "dev", "test"))
    config = str(ROOT / SCALES["tiny"].config)
    named = parse_systems(systems or DEFAULT_RECIPE.systems)
    return plan_cells(output, config, named, seeds, common_changes(output, data, None, None), data)


def test_every_objective_has_its_ways_and_all_systems_the_same_budget() -> None:
    names = [name for (name,) in DEFAULT_RECIPE.systems]
    assert all(map(ways_of, OBJECTIVES)) and set(names) < OBJECTIVES.keys()
    planned = cells()
    assert [cell.name for cell in planned[:6]] == [*(f"{n}-seed1" for n in names), "ar-seed2"]
    for cell in planned:
        ours, first = (c.config.model_dump() for c in (cell, planned[0]))
        assert ours.pop("objective")["name"] == cell.system.name and first.pop("objective")
        assert ours["run"].pop("seed") == cell.seed and first["run"].pop("seed") == 1
        assert ours["run"].pop("output_dir") == f"out/runs/{cell.name}" and first["run"].pop(
            "output_dir"
        )
        assert ours == first, "objectives differ in nothing else"


def test_a_system_may_differ_in_anything() -> None:
    mixed = [
        "janus-full",
        "objective.name=janus",
        "objective.masking.full_share=0.2",
        "optimizer.lr=1e-4",
    ]
    plain, other = cells(["janus"], mixed, seeds=(1,))
    assert other.config.objective.masking.full_share == 0.2 and other.config.optimizer.lr == 1e-4
    assert other.system.ways == plain.system.ways
    assert last_value("optimizer.lr", other.system.changes) == "1e-4"
    assert last_value("run.init_from", other.system.changes) is None


def test_a_recipe_is_planned_with_its_own_validation(tmp_path: Path) -> None:
    recipe = RECIPES["g2p"]
    data = Data(recipe.task, tmp_path / "data", None, ("train", "dev", "test"), recipe.prep)
    common = common_changes(tmp_path, data, None, None)
    config = str(SCALES[recipe.scale].config)
    planned = plan_cells(tmp_path, config, parse_systems(recipe.systems), (1,), common, data)
    modes = {cell.system.name: cell.config.validation.mode for cell in planned}
    assert modes["ar-rdrop"] == modes["janus"] == "ar" and modes["cmlmc"] == "nar"
    assert modes["bang-nar"] == "bang_nar"
    for cell in planned:
        assert cell.config.validation.data == str(tmp_path / "data" / "cmudict")
        assert cell.config.validation.split == "dev" and cell.config.run.patience > 0
    by_name = {cell.system.name: cell.config.objective for cell in planned}
    assert by_name["janus"].kl_ar_aux == pytest.approx(10 * by_name["janus-light"].kl_ar_aux)
    assert by_name["ar-rdrop"].name == "ar" and by_name["ar-rdrop"].draws == 2


def test_what_is_compared_with_what() -> None:
    planned = cells(["ar"], ["cmlm"], ["janus"], ["joint"])
    janus = next(cell for cell in planned if cell.name == "janus-seed2")

    def against(
        way: str, baseline: str | None = None, cell: Cell = janus
    ) -> tuple[str, str] | None:
        found = baseline_of(cell, way, planned, baseline)
        return found and (found[0].name, found[1])

    assert against("AR greedy") == ("ar-seed2", "AR greedy")
    assert against("NAR 10 passes") == ("cmlm-seed2", "NAR 10 passes")
    assert against("rerank") == ("ar-seed2", "AR beam 5") and against("speculative") == (
        "ar-seed2",
        "AR greedy",
    )
    assert against("rerank", "joint") == ("joint-seed2", "rerank")
    assert against("NAR 10 passes", "ar") is None
    assert against("AR greedy", cell=planned[0]) is None, "nothing is compared with itself"


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (
            [["glat"]],
            "there is no way here to decode 'glat'; set objective.name to one of: ar, bang",
        ),
        ([["a/b", "objective.name=ar"]], "a name has letters, digits"),
        ([["ar"], ["ar", "optimizer.lr=1"]], "ar is given twice"),
        ([["ar", "optimizer.lr"]], "optimizer.lr: write it as KEY=VALUE"),
    ],
)
def test_wrong_systems_are_named(systems: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_systems(systems)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1", "2", "1"], "--seeds: 1 is given twice"),
        (["--task", "nmt/de-en"], "--task nmt/de-en: needs its data; give --data"),
        (["--output", "file"], "file: no folder can be made there: "),
        (["--set", "run.init_from=nowhere"], "nowhere: no exported model here"),
    ],
)
def test_wrong_arguments_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run_script(monkeypatch, "launchers/claims.py", *arguments) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1


def test_a_comparison_is_made_anew_for_other_outputs(tmp_path: Path) -> None:
    """The values of the comparison follow the outputs of both sides, and are kept as long as these are."""
    planned, way = cells(["cmlm"], ["joint"], output=tmp_path, seeds=(1,)), "NAR 4 passes"
    data = Data(
        "nmt", tmp_path / "data", str(write_pairs(tmp_path / "pairs")), ("train", "dev", "test")
    )
    good, bad = data.test.targets, data.test.sources

    def difference(ours: list[str], theirs: list[str]) -> float:
        for cell, texts in zip(planned, (ours, theirs), strict=True):
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / "texts").write_text("".join(text + "\n" for text in texts))
            result_file(cell.folder, way).write_text(
                json.dumps({"predictions": str(cell.folder / "texts")})
            )
        found: float = compare(planned[0], way, (planned[1], way), data)["bleu"]["difference"]
        return found

    worse = sacrebleu.corpus_bleu(bad, [good]).score
    assert difference(good, bad) == pytest.approx(100 - worse)
    kept = result_file(planned[0].folder, way).with_suffix(".compared.json")
    made = kept.stat().st_mtime_ns
    assert difference(good, bad) == pytest.approx(100 - worse) and kept.stat().st_mtime_ns == made
    assert difference(bad, good) == pytest.approx(worse - 100)
    assert difference(bad, bad) == 0


SMALLER = {
    "model.hidden_size": 16,
    "model.ffn_hidden_size": 16,
    "model.num_attention_heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "model.max_positions": 40,
    "run.max_steps": 12,
    "run.eval_every": 6,
    "schedule.warmup_steps": 2,
}


def write_pairs(folder: Path) -> Path:
    """Three nouns, and the same in another order."""
    rng, words = (
        np.random.default_rng(0),
        ["slot", "query", "content", "mask", "beam", "length", "token", "pass"],
    )
    folder.mkdir()
    for split, count in (("train", 300), ("dev", 12), ("test", 12)):
        chosen = [rng.choice(words, 3) for _ in range(count)]
        for side, lines in (
            ("src", [f"the {a} reads the {b} and a {c}" for a, b, c in chosen]),
            ("tgt", [f"a {c} writes the {a} and the {b}" for a, b, c in chosen]),
        ):
            (folder / f"{split}.{side}").write_text("".join(line + "\n" for line in lines))
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    changes = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    systems = ["--system", "ar", "--system", "janus"]
    start = [
        sys.executable,
        str(ROOT / "launchers" / "claims.py"),
        "--output",
        str(folder / "claims"),
    ]
    given = [
        "--data",
        str(folder / "pairs"),
        "--tokenizer",
        str(folder / "tokenizer.model"),
        "--jobs",
        "2",
    ]
    return [*start, *given, *systems, *changes, *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = command(folder, *arguments)
    return subprocess.run(
        call, capture_output=True, text=True, timeout=240, env=environment(), cwd=ROOT
    )


def kill_when_there(path: Path, call: list[str]) -> None:
    """Start a comparison and kill all its processes as soon as a file is there."""
    with subprocess.Popen(call, env=environment(), cwd=ROOT, start_new_session=True) as process:
        deadline = time.monotonic() + 200
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.exists() and process.poll() is None, "the comparison ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison that was killed once and then done."""
    folder = tmp_path_factory.mktemp("claims")
    write_pairs(folder / "pairs")
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes(300))
    kill_when_there(folder / "claims" / "cells" / "ar-seed1" / "AR_greedy.json", command(folder))
    kept = {path: path.stat().st_mtime_ns for path in (folder / "claims").glob("cells/*/*.json")}
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return {
        "folder": folder,
        "kept": kept,
        "report": json.loads((folder / "claims" / "claims.json").read_text()),
    }


@pytest.mark.slow
def test_what_was_done_before_the_kill_is_not_done_again(compared: dict[str, Any]) -> None:
    names = {path.parent.name + "/" + path.stem for path in compared["kept"]}
    assert "ar-seed1/AR_greedy" in names and "ar-seed1/trained" in names
    for path, time_ns in compared["kept"].items():
        assert path.stem == "decode" or path.stat().st_mtime_ns == time_ns, path
    again = run(compared["folder"])
    assert (
        again.returncode == 0
        and ": training" not in again.stdout
        and ": decoding" not in again.stdout
    )
    assert (
        json.loads((compared["folder"] / "claims" / "claims.json").read_text())
        == compared["report"]
    )


@pytest.mark.slow
def test_the_report_says_what_the_outputs_are(compared: dict[str, Any]) -> None:
    folder, rows = compared["folder"] / "claims", compared["report"]["rows"]
    assert [(r["system"], r["way"]) for r in rows] == [
        (s, w) for s in ("ar", "janus") for w in ways_of(s)
    ]
    references = (compared["folder"] / "pairs" / "test.tgt").read_text().splitlines()
    written = {}
    for row in rows:
        cell = folder / "cells" / f"{row['system']}-seed1"
        (texts,) = cell.glob(
            f"{row['way'].replace(',', '').replace(' ', '_')}.{row['options']['mode']}.txt"
        )
        written[row["system"], row["way"]] = outputs = texts.read_text().split("\n")[:-1]
        for name, score in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
            assert row["values"][name] == [pytest.approx(score(outputs, [references]).score)]
        assert set(row["speeds"]) == {"1", "8"} and min(row["speeds"].values()) > 0
        if row["options"]["mode"] == "nar":
            assert row["passes"] == row["options"]["iterations"]
    by_way = {(r["system"], r["way"]): r for r in rows}
    speculative = by_way["janus", "speculative"]
    assert (
        written["janus", "speculative"] == written["janus", "AR greedy"]
        and speculative["as_greedy"] == 1.0
    )
    assert speculative["against"] == "ar, AR greedy" and 0 < speculative["p_value"][0] <= 1
    assert (
        by_way["ar", "AR greedy"]["against"] == ""
        and by_way["janus", "NAR 4 passes"]["difference"] == []
    )
    text = (folder / "report.md").read_text()
    assert "12 updates of 1,024 tokens" in text
    page = (folder / "report.html").read_text()
    assert page == render(json.loads((folder / "claims.json").read_text()))
    # The report's rows of the system; the columns are padded.
    assert len(re.findall(r"^\| janus +\|", text, re.MULTILINE)) == len(ways_of("janus"))
    assert all(
        (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        for name in ("curves", "speeds")
    )


@pytest.mark.slow
def test_all_is_in_one_experiment(compared: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{compared['folder'] / 'claims' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("claims").experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert runs.keys() == {"ar-seed1", "janus-seed1", "report"}
    for row in compared["report"]["rows"]:
        logged = runs[f"{row['system']}-seed1"].data.metrics
        assert logged[f"test/{row['way'].replace(',', '')}/bleu"] == row["values"]["bleu"][0]
    files = {file.path for file in client.list_artifacts(runs["report"].info.run_id)}
    assert {"report.html", "report.md", "claims.json", "curves.png"} <= files


@pytest.mark.slow
def test_another_configuration_or_other_data_are_refused(compared: dict[str, Any]) -> None:
    done = run(compared["folder"], "--set", "optimizer.lr=0.5")
    assert done.returncode == 2 and "optimizer.lr (was 0.003, is 0.5)" in done.stderr
    with (compared["folder"] / "pairs" / "dev.src").open("a") as source:
        source.write("one more\n")
    done = run(compared["folder"])
    assert done.returncode == 2 and "dev.tgt: 12 lines, but" in done.stderr
    with (compared["folder"] / "pairs" / "dev.tgt").open("a") as target:
        target.write("one more\n")
    done = run(compared["folder"])
    assert (
        done.returncode == 2 and "was made of other data or with another tokenizer" in done.stderr
    )


def test_the_made_up_language_is_one_that_can_be_translated() -> None:
    """Word for word, but for order: each source word has one translation, whose dialect alone is left to chance."""
    pairs = made_up_pairs(300, seed=5)
    assert pairs == made_up_pairs(300, seed=5) and pairs != made_up_pairs(300, seed=6)
    meaning: dict[str, set[str]] = {}
    for source, target in pairs:
        clauses = zip(source.split(" and "), target.split(" , "), strict=True)
        for theirs, ours in clauses:
            _, how, who, does, _, what, whom = theirs.split()
            first, *translated = ours.split()
            assert translated[2] == first and first in ("la", "ol")
            translated[-1] = translated[-1].removesuffix({"la": "it", "ol": "ek"}[first])
            for word, found in zip(
                (who, how, whom, what, does), np.delete(translated, 2), strict=True
            ):
                meaning.setdefault(word, set()).add(str(found))
    assert (
        all(len(found) == 1 for found in meaning.values())
        and len(meaning) == NOUNS + ADJECTIVES + VERBS
    )
    assert len({next(iter(found)) for found in meaning.values()}) == len(meaning)
