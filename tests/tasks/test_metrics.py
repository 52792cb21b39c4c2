"""Metrics against stated values of the tools they stand for, and against computations written out here."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from janus_pt.tasks.bleu import (
    coco_bleu,
    legacy_compound_bleu,
    paired_bootstrap,
    reference_streams,
    sentence_bleu_means,
)
from janus_pt.tasks.glge import glge_overall, overall_of_reports
from janus_pt.tasks.metrics import METRICS, check_metrics, compute, values_to_maximize
from janus_pt.tasks.outputs import Outputs, pair_up
from janus_pt.tasks.overlap import coco_rouge_l, coqa_f1, distinct, meteor, rouge
from janus_pt.tasks.table import TASKS
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import read_lines
from tests.support.runs import run_script

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "data" / "metric_vectors"


def vectors(name: str) -> Any:
    path = VECTORS / name
    if not path.is_file():
        pytest.skip(f"no metric vectors in {VECTORS}")
    return json.loads(path.read_text())


# --- stated values ---------------------------------------------------------------------------------------------------


def test_stated_bleu() -> None:
    cases = vectors("bleu_cases.json")
    for case in cases["corpus"]:
        outputs = pair_up(case["hyps"], case["refs"])
        if "smooth_method" not in case["opts"]:
            found = compute(outputs, ["bleu"], case["opts"].get("tokenize", "13a"))
            assert found.values["bleu"] == pytest.approx(case["bleu"], abs=1e-5)
        options = {"smooth_method": "exp", **case["opts"]}
        assert BLEU(**options).corpus_score(
            case["hyps"], reference_streams(outputs)
        ).score == pytest.approx(case["bleu"])
    for case in cases["max_order"]:
        score = BLEU(max_ngram_order=case["order"]).corpus_score(
            case["hyps"], reference_streams(pair_up(case["hyps"], case["refs"]))
        )
        assert score.score == pytest.approx(case["bleu"], abs=0.01)
    for case in cases["sentence_effective_order"]:
        options = {
            "smooth_method": case["smooth"],
            "smooth_value": case["value"],
            "tokenize": case["tokenize"],
        }
        score = BLEU(lowercase=case["lowercase"], effective_order=True, **options).sentence_score(
            case["hyp"], [case["ref"]]
        )
        assert score.score == pytest.approx(case["bleu"], abs=0.01)


def test_stated_chrf() -> None:
    """The stated values are of chrF3 with eps smoothing: not our defaults, but the same code."""
    for case in vectors("bleu_cases.json")["chrf"]:
        metric = CHRF(beta=3, eps_smoothing=True)
        assert metric.corpus_score(case["hyps"], [case["refs"]]).score == pytest.approx(
            case["chrf"], abs=1e-3
        )
        if case["chrf"] in (0, 100):
            ours = compute(pair_up(case["hyps"], [case["refs"]]), ["chrf"])
            assert ours.values["chrf"] == pytest.approx(case["chrf"])


def coco_cases() -> list[tuple[Outputs, dict[str, Any]]]:
    cases = vectors("coco_nlg_eval_cases.json")
    single = [(Outputs([case["hyp"]], [case["refs"]]), case) for case in cases["single"]]
    return single + [(pair_up(case["hyps"], case["ref_streams"]), case) for case in cases["corpus"]]


def test_stated_coco_bleu_and_rouge() -> None:
    for outputs, case in coco_cases():
        expected = [case[f"Bleu_{order}"] for order in range(1, 5)]
        assert [score / 100 for score in coco_bleu(outputs)] == pytest.approx(
            expected, rel=1e-4, abs=2e-6
        )
        found = compute(outputs, ["bleu4", "corpus_bleu", "coco_rougeL"]).values
        assert found["bleu4"] / 100 == pytest.approx(case["Bleu_4"], rel=1e-4, abs=2e-6)
        assert found["corpus_bleu2"] / 100 == pytest.approx(case["Bleu_2"], abs=1e-5)
        assert found["coco_rougeL"] / 100 == pytest.approx(case["ROUGE_L"], abs=1e-6)


def test_stated_rouge() -> None:
    for case in vectors("rouge_score_cases.json")["cases"]:
        score = rouge(Outputs([case["prediction"]], [[case["target"]]])).values[case["type"]]
        assert score / 100 == pytest.approx(case["F"], abs=1e-9)
        parts = RougeScorer([case["type"]], use_stemmer=True).score(
            case["target"], case["prediction"]
        )[case["type"]]
        assert (parts.precision, parts.recall) == pytest.approx((case["P"], case["R"]))


# --- computations written out ----------------------------------------------------------------------------------------


def test_coco_values_without_the_vectors() -> None:
    outputs = Outputs(["this is a good test"], [["this is a test", "this is also a test"]])
    assert coco_bleu(outputs)[:3] == pytest.approx([80.0, 63.2455, 51.0873], abs=1e-3)
    assert coco_rouge_l(outputs).values["coco_rougeL"] == pytest.approx(90.70631, abs=1e-4)


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        previous = row[:]
        for j, y in enumerate(b):
            row[j + 1] = previous[j] + 1 if x == y else max(previous[j + 1], row[j])
    return row[-1]


def test_rouge_l_against_its_definition() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 12))) for _ in range(60)]
    outputs = Outputs(texts[:30], [[text] for text in texts[30:]])
    plain = coco = 0.0
    for prediction, (reference,) in outputs:
        common = longest_common_subsequence(prediction.split(), reference.split())
        p, r = common / len(prediction.split()), common / len(reference.split())
        plain += 2 * p * r / (p + r) if common else 0
        coco += 2.44 * p * r / (r + 1.44 * p) if common else 0
    assert rouge(outputs).values["rougeL"] == pytest.approx(100 * plain / 30)
    assert coco_rouge_l(outputs).values["coco_rougeL"] == pytest.approx(100 * coco / 30)


def test_summary_level_rouge_reads_the_sentences() -> None:
    """Two sentences in the other order: each is found whole, while one subsequence holds only the longer of them."""
    outputs = Outputs(["x y z <S_SEP> a b"], [["a b <S_SEP> x y z"]])
    found = rouge(outputs).values
    assert found["rougeLsum"] == pytest.approx(100) and found["rouge1"] == pytest.approx(100)
    assert found["rougeL"] == pytest.approx(60)


def smoothed_bleu(prediction: list[str], reference: list[str], weights: list[float]) -> float:
    """Method 7 of Chen and Cherry (2014) word by word: method 4 in place of zeros, then method 5's averages."""

    def precision(n: int) -> tuple[int, int]:
        ours, theirs = (
            Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in (prediction, reference)
        )
        return (ours & theirs).total(), max(1, ours.total())

    counts = [precision(n) for n in range(1, 6)]
    if not counts[0][0]:
        return 0.0
    p, k = [], 1
    for matches, total in counts[:4]:
        if not matches and len(prediction) > 1:
            p.append(math.log(len(prediction)) / (2**k * 5) / total)
            k += 1
        else:
            p.append(matches / total)
    p.append(counts[4][0] / counts[4][1])
    before = p[0] + 1
    averaged = []
    for n in range(4):
        before = (before + p[n] + p[n + 1]) / 3
        averaged.append(before)
    brevity = min(1.0, math.exp(1 - len(reference) / len(prediction)))
    return brevity * math.exp(
        sum(w * math.log(q) for w, q in zip(weights, averaged, strict=True) if w)
    )


def test_sentence_bleu_is_smoothing_method_7() -> None:
    pairs = [
        ("i like big dogs very much", "i like dogs very much indeed"),
        ("yes i do", "no i do not"),
        ("", "hello"),
    ]
    outputs = Outputs([p for p, _ in pairs], [[r] for _, r in pairs])
    for order, weights in ((1, [1, 0, 0, 0]), (2, [0.5, 0.5, 0, 0])):
        expected = sum(
            smoothed_bleu(p.split(), r.split(), weights) if p else 0.0 for p, r in pairs
        ) / len(pairs)
        assert sentence_bleu_means(outputs).values[f"sentence_bleu{order}"] == pytest.approx(
            100 * expected, rel=1e-6
        )


def plain_coco_bleu(outputs: Outputs) -> list[float]:
    """Clipped n-gram precisions with COCO's two constants, and the nearest reference's length, the shorter of two."""
    matches, totals, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for prediction, references in outputs:
        ours, theirs = prediction.split(), [r.split() for r in references]
        length += len(ours)
        reference_length += min((abs(len(r) - len(ours)), len(r)) for r in theirs)[1]
        for n in range(4):
            grams, *others = (
                Counter(zip(*(t[i:] for i in range(n + 1)), strict=False)) for t in (ours, *theirs)
            )
            matches[n] += sum(
                min(count, max(o[gram] for o in others)) for gram, count in grams.items()
            )
            totals[n] += grams.total()
    precisions = [(m + 1e-15) / (t + 1e-9) for m, t in zip(matches, totals, strict=True)]
    penalty = min(1.0, math.exp(1 - reference_length / length))
    return [100 * penalty * math.prod(precisions[:n]) ** (1 / n) for n in range(1, 5)]


def real_outputs(folder: str, source: str, target: str) -> tuple[Outputs, list[str]]:
    """The first words of a source as the prediction, for some hundred lines of a real test set; and the sources."""
    root = VECTORS.parent / folder
    if not (root / f"{source}.gz").is_file():
        pytest.skip(f"no data in {root}")
    sources, targets = (read_lines(root / name)[:400] for name in (source, target))
    predictions = [" ".join(text.split()[: 6 + len(text) % 7]) for text in sources]
    return pair_up(predictions, [targets], sources), sources


@pytest.mark.parametrize(
    "place",
    [("squad_qg", "src-test.txt", "tgt-test.txt"), ("personachat", "src-val.txt", "tgt-val.txt")],
)
def test_real_outputs_against_plain_computations(place: tuple[str, str, str]) -> None:
    outputs, sources = real_outputs(*place)
    assert len(outputs) == len(set(sources)) and max(len(r) for r in outputs.references) > 1
    found = compute(
        outputs, ["bleu4", "corpus_bleu", "coco_rougeL", "sentence_bleu", "distinct"]
    ).values
    bleu = plain_coco_bleu(outputs)
    ours = [found["corpus_bleu1"], found["corpus_bleu2"], found["bleu4"]]
    assert ours == pytest.approx([bleu[0], bleu[1], bleu[3]], rel=1e-6)
    total = 0.0
    for prediction, references in outputs:
        lengths = [
            (longest_common_subsequence(prediction.split(), r.split()), len(r.split()))
            for r in references
        ]
        p = max(common for common, _ in lengths) / len(prediction.split())
        r = max(common / length for common, length in lengths)
        total += 2.44 * p * r / (r + 1.44 * p) if p else 0
    assert found["coco_rougeL"] == pytest.approx(100 * total / len(outputs))
    one = Outputs(outputs.predictions, [references[:1] for references in outputs.references])
    expected = [smoothed_bleu(p.split(), r[0].split(), [0.5, 0.5, 0, 0]) for p, r in one]
    assert sentence_bleu_means(one).values["sentence_bleu2"] == pytest.approx(
        100 * sum(expected) / len(one), rel=1e-6
    )
    words = " ".join(outputs.predictions).split()
    assert found["distinct1"] == pytest.approx(100 * len(set(words)) / len(words))


def test_sentence_and_corpus_bleu_are_not_one_number() -> None:
    outputs = Outputs(["a b c", "d e f g"], [["a b d"], ["d e g f"]])
    found = compute(outputs, ["sentence_bleu", "corpus_bleu"]).values
    assert found["corpus_bleu1"] == pytest.approx(100 * 6 / 7)
    assert set(found) == {"sentence_bleu1", "sentence_bleu2", "corpus_bleu1", "corpus_bleu2"}
    assert abs(found["sentence_bleu1"] - found["corpus_bleu1"]) > 1


def test_meteor_is_exact_and_stem() -> None:
    """By the formula: 3 of 4 words match, one of them by its stem, in one chunk; a synonym does not."""
    outputs = Outputs(["the cats sleep well"], [["the cat sleeps deeply"]])
    p = r = 3 / 4
    fmean = p * r / (0.9 * p + 0.1 * r)
    assert meteor(outputs).values["meteor"] == pytest.approx(100 * fmean * (1 - 0.5 * (1 / 3) ** 3))
    best_of_two = Outputs(["the cats sleep well"], [["nothing alike", "the cat sleeps deeply"]])
    assert meteor(best_of_two).values == meteor(outputs).values
    assert meteor(Outputs(["big"], [["large"]])).values["meteor"] == 0
    assert meteor(Outputs([""], [["large"]])).values["meteor"] == 0


def test_distinct() -> None:
    found = distinct(Outputs(["a b a", "a b", "c"], [["x"]] * 3)).values
    assert found == {
        "distinct1": pytest.approx(100 * 3 / 6),
        "distinct2": pytest.approx(100 * 2 / 3),
    }
    assert distinct(Outputs([""], [["x"]])).values == {"distinct1": 0.0, "distinct2": 0.0}


def test_coqa_f1() -> None:
    cases = [
        ("The white cat.", "a WHITE cat", 1.0), ("white", "a white cat", 2 / 3), ("dog", "a cat", 0.0),
        ("the", "a", 1.0), ("", "cat", 0.0),
    ]  # fmt: skip
    for prediction, reference, expected in cases:
        assert coqa_f1(Outputs([prediction], [[reference]])).values["coqa_f1"] == pytest.approx(
            100 * expected
        )
    assert coqa_f1(Outputs(["cat"], [["dog", "the cat"]])).values["coqa_f1"] == pytest.approx(100)


def test_compound_splitting_counts_parts_of_hyphened_words() -> None:
    outputs = Outputs(["a well-known man of the north"], [["a well-read man of the north"]])
    split = Outputs(
        ["a well ##AT##-##AT## known man of the north"],
        [["a well ##AT##-##AT## read man of the north"]],
    )
    expected = (
        BLEU(tokenize="none", smooth_method="none")
        .corpus_score(split.predictions, reference_streams(split))
        .score
    )
    assert legacy_compound_bleu(outputs).values["legacy_compound_bleu"] == pytest.approx(expected)
    assert abs(expected - compute(outputs, ["bleu"]).values["bleu"]) > 1


texts = st.text(alphabet="ab -.<é\u3000", max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=3))
def test_every_metric_takes_every_text(pairs: list[tuple[str, list[str]]]) -> None:
    """Empty lines, lone signs, other numbers of references: a finite value that is not negative."""
    outputs = Outputs(
        [prediction for prediction, _ in pairs], [references for _, references in pairs]
    )
    assert all(0 <= value < math.inf for value in compute(outputs, list(METRICS)).values.values())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=9).map(" ".join),
        min_size=1,
        max_size=3,
    )
)
def test_a_reference_scored_against_itself_is_perfect(lines: list[str]) -> None:
    found = compute(
        pair_up(lines, [lines]), ["bleu", "chrf", "ter", "bleu4", "rouge", "coco_rougeL", "coqa_f1"]
    ).values
    assert found.pop("ter") == 0
    assert all(value == pytest.approx(100) for value in found.values())


def test_identical_sources_are_one_output_with_the_last_prediction() -> None:
    outputs = pair_up(
        ["p1", "p2", "p3"], [["r1", "r2", "r3"], ["s1", "s2", "s3"]], ["a", "b", "a "]
    )
    assert list(outputs) == [("p3", ["r1", "s1", "r3", "s3"]), ("p2", ["r2", "s2"])]
    assert reference_streams(outputs) == [["r1", "r2"], ["s1", "s2"], ["r3", None], ["s3", None]]
    found = compute(
        Outputs(["a b c d", "e f g h"], [["a b c d", "x"], ["e f g h"]]), ["bleu", "chrf", "ter"]
    )
    assert found.values["bleu"] == pytest.approx(100) and found.values["ter"] == 0
    assert "nrefs:var" in found.signatures["bleu"]


def test_glge_overall_is_the_mean_of_means() -> None:
    rows = {name: task for name, task in TASKS.items() if name.startswith("glge/")}
    assert len(rows) == 8
    scores = {
        name: {metric: 10.0 * n + m for m, metric in enumerate(task.overall_values)}
        for n, (name, task) in enumerate(rows.items())
    }
    means = [10.0 * n + (len(task.overall_values) - 1) / 2 for n, task in enumerate(rows.values())]
    assert glge_overall(scores)["overall"] == pytest.approx(sum(means) / 8)
    del scores["glge/msqg"]
    with pytest.raises(UserError, match="glge/msqg is missing"):
        glge_overall(scores)


def test_overall_of_reports(tmp_path: Path) -> None:
    def write(name: str, task: str, split: str = "test", value: Any = 50.0) -> str:
        rows = [{"mode": "nar", "metrics": dict.fromkeys(TASKS[task].overall_values, value)}]
        (tmp_path / name).write_text(json.dumps({"task": task, "split": split, "rows": rows}))
        return str(tmp_path / name)

    names = [name for name in TASKS if name.startswith("glge/")]
    reports = [write(str(n), name, value=10.0 * n) for n, name in enumerate(names)]
    assert overall_of_reports(reports, "nar")["overall"] == pytest.approx(35)
    for more, message in (
        (write("twice", names[0]), f"twice: is about {names[0]}, as .*0 is"),
        (write("nan", names[0], value=float("nan")), "nan: no report of"),
        (write("null", names[0], value=None), "null: no report of"),
    ):
        with pytest.raises(UserError, match=message):
            overall_of_reports([*reports, more], "nar")
    with pytest.raises(UserError, match=r"dev: is about split dev, .*0 about test; take one"):
        overall_of_reports([*reports[:-1], write("dev", names[-1], "dev")], "nar")
    with pytest.raises(UserError, match="has no row for mode 'ar', only nar"):
        overall_of_reports(reports, "ar")


def test_metrics_give_the_values_that_they_declare() -> None:
    outputs = Outputs(["a b c d e"], [["a b c d f"]])
    for name, metric in METRICS.items():
        assert tuple(metric.compute(outputs).values) == metric.values, name
    assert values_to_maximize(["ter", "corpus_bleu"]) == ["corpus_bleu1", "corpus_bleu2"]


def test_metrics_declare_which_direction_is_better() -> None:
    reference = "a b c d e f g h"
    good, bad = (Outputs([text], [[reference]]) for text in (reference, "y y y y y y y y"))
    for name, metric in METRICS.items():
        better, worse = metric.compute(good).values, metric.compute(bad).values
        for value in metric.values:
            assert (better[value] > worse[value]) == metric.higher_is_better, (name, value)


@pytest.mark.parametrize(("metric", "package"), [("rouge", "rouge_score"), ("meteor", "nltk")])
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, metric: str, package: str
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; .*'janus_pt\[tasks\]'"):
        check_metrics([metric])
    check_metrics(["bleu", "coqa_f1"])


def test_rows_ask_for_metrics_that_give_their_scores() -> None:
    outputs = Outputs(["a b c d e"], [["a b c d f"]])
    for task in TASKS.values():
        assert set(task.overall_values) <= set(compute(outputs, task.metrics).values)


def test_paired_bootstrap_tells_a_better_system() -> None:
    rng = random.Random(0)
    references = [" ".join(rng.choices("abcdefghijklmnop", k=12)) for _ in range(40)]
    worse, as_bad = (
        [" ".join(w if rng.random() < 0.6 else "z" for w in text.split()) for text in references]
        for _ in range(2)
    )
    outputs = Outputs(references, [[text] for text in references])
    found = paired_bootstrap(outputs, worse)
    for name in ("bleu", "chrf"):
        assert found[name]["system"] == pytest.approx(100) and found[name]["baseline"] < 80
        assert found[name]["p_value"] < 0.01
        assert (
            found[name]["difference"]
            == compute(outputs, [name]).values[name]
            - compute(Outputs(worse, outputs.references), [name]).values[name]
        )
    assert paired_bootstrap(Outputs(worse, outputs.references), as_bad)["bleu"]["p_value"] > 0.05


# --- the launcher ----------------------------------------------------------------------------------------------------


def test_score_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hyp").write_text("the dog bit the man .\nit was fine\n")
    Path("ref1").write_text("the dog bit a man .\r\nit was good\r\n")
    Path("ref2").write_text("a dog bit the man .\nall was fine")
    Path("base").write_text("dog man\nno\n")
    arguments = [
        "--references",
        "ref1",
        "--references",
        "ref2",
        "--metrics",
        ",".join(METRICS),
        "--json",
        "out",
    ]
    assert (
        run_script(
            monkeypatch,
            "launchers/evaluate.py",
            "score",
            "--predictions",
            "hyp",
            *arguments,
            "--baseline",
            "base",
        )
        == 0
    )
    found = json.loads(Path("out").read_text())
    wanted = "bleu chrf ter rouge1 rouge2 rougeL meteor bleu4 sentence_bleu1 sentence_bleu2 distinct1 distinct2 coqa_f1"
    assert set(wanted.split()) <= set(found)
    assert all(0 < found[name] <= 100 for name in wanted.split() if not name.startswith("sentence"))
    assert re.fullmatch(
        r"nrefs:2\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:.*", found["signatures"]["bleu"]
    )
    assert set(found["paired_bootstrap"]) == {"bleu", "chrf"}
    Path("src").write_text("same\nsame\n")
    assert (
        run_script(
            monkeypatch,
            "launchers/evaluate.py",
            "score",
            "--predictions",
            "hyp",
            *arguments,
            "--sources",
            "src",
        )
        == 0
    )
    assert json.loads(Path("out").read_text())["outputs"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--predictions": "nowhere"}, "nowhere: cannot be read: No such file"),
        ({"--references": "short"}, "short: 1 lines, but hyp has 2"),
        ({"--sources": "short"}, "short: 1 lines, but hyp has 2"),
        ({"--predictions": "empty", "--references": "empty"}, "empty: the file is empty"),
        ({"--metrics": "bleu,rogue"}, "metrics: there is no 'rogue'; did you mean rouge?"),
        ({"--metrics": ""}, "metrics: there is no ''"),
        ({"--tokenize": "moses"}, "tokenize: sacrebleu has no 'moses'"),
        ({"--tokenize": "ko-mecab"}, "tokenize: sacrebleu cannot use 'ko-mecab' here"),
        ({"--predictions": "latin"}, "latin, line 2: not valid UTF-8"),
        ({"--json": "no/where"}, "no/where: cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    changes: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hyp").write_text("a b\nc d\n")
    Path("short").write_text("a b\n")
    Path("empty").write_text("")
    Path("latin").write_bytes(b"a\n\xe9\n")
    arguments = {
        "--predictions": "hyp",
        "--references": "hyp",
        "--metrics": "bleu",
        "--json": "out",
        **changes,
    }
    assert (
        run_script(monkeypatch, "launchers/evaluate.py", "score", *chain(*arguments.items())) == 2
    )
    told = capfd.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1
