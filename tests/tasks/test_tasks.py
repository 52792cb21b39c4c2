"""Task folders as they are, and everything that can be wrong with them; corpora and reports made of them."""

from __future__ import annotations

import gzip
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import webdataset

from janus_pt.config.origin import read_origin
from janus_pt.data.manifest import read_manifest
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tasks.evaluate import decoding_options, score_texts
from janus_pt.tasks.reading import TaskSplit, read_split, shorten
from janus_pt.tasks.table import TASKS, Task, find_task
from janus_pt.tokenizer import read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.models import SHAPE, tiny_model, tokenizer_bytes
from tests.support.runs import run_script
from tests.tokenizer.texts import bart_json

SOURCES = ["the slot reads the query", "the slot reads the query", "the mask and  the beam"]
TARGETS = ["a token", "a pass", "a length"]


def write(folder: Path, **files: list[str]) -> Path:
    """Files called `split_side` as `split.side`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def glge(tmp_path: Path) -> Path:
    for level in ("easy", "hard"):
        write(
            tmp_path / level / "squadqg_data" / "org_data",
            test_src=[f"{level} {s}" for s in SOURCES],
            test_tgt=TARGETS,
        )
    return tmp_path


def test_the_rows_are_the_tasks_of_glge() -> None:
    names = {name.removeprefix("glge/") for name in TASKS if name.startswith("glge/")}
    assert names == {
        "cnndm",
        "gigaword",
        "xsum",
        "msnews",
        "squad_qg",
        "msqg",
        "coqa",
        "personachat",
    }
    assert find_task("glge/cnndm").folder == "cnndm_data/org_data"


def test_glge_folders_are_read_as_they_are(glge: Path) -> None:
    task = find_task("glge/squad_qg")
    easy = glge / "easy"
    for folder in (easy, easy / "squadqg_data", easy / "squadqg_data" / "org_data"):
        assert read_split(task, folder, "test") == TaskSplit(
            [f"easy {' '.join(s.split())}" for s in SOURCES], TARGETS
        )
    with pytest.raises(
        UserError, match=r"has the levels easy, hard; give one of them, as in .*easy$"
    ):
        read_split(task, glge, "test")
    (glge / "hard" / "squadqg_data" / "org_data" / "test.src").unlink()
    assert read_split(task, glge, "test").sources[0].startswith("easy")


def test_translation_files_by_language(tmp_path: Path) -> None:
    write(tmp_path, dev_de=["ein Satz"], dev_en=["a sentence"])
    assert read_split(find_task("nmt/de-en"), tmp_path, "dev") == TaskSplit(
        ["ein Satz"], ["a sentence"]
    )
    assert read_split(find_task("nmt-tagged/de-en"), tmp_path, "dev").sources == ["<2en> ein Satz"]
    (tmp_path / "dev.de").unlink()
    (tmp_path / "dev.de.gz").write_bytes(gzip.compress(b"noch einer\r\n"))
    assert read_split(find_task("nmt/de-en"), tmp_path, "dev").sources == ["noch einer"]


def test_json_lines(tmp_path: Path) -> None:
    example = {
        "context": "Once {upon}\na time.",
        "answer1": "the king",
        "question": "who ?",
        "id": 3,
    }
    write(tmp_path, val_jsonl=[json.dumps(example)])
    found = read_split(find_task("fairytaleqa"), tmp_path, "val")
    assert found == TaskSplit(["the king </s> Once {upon} a time."], ["who ?"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test_src": SOURCES}, r"test\.tgt: cannot be read: No such file"),
        ({"test_tgt": TARGETS}, r"has no test\.src; give the folder"),
        (
            {"test_src": SOURCES, "test_tgt": TARGETS[:2]},
            r"test\.tgt: 2 lines, but .*test\.src has 3",
        ),
        (
            {"test_src": ["a", " ", "b"], "test_tgt": TARGETS},
            r"test\.src, line 2: src is empty; remove the example",
        ),
        ({"test_src": SOURCES, "test_tgt": ["a", "b", ""]}, r"test\.tgt, line 3: tgt is empty"),
        ({"test_src": [], "test_tgt": []}, r"test\.src: the file is empty"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, files: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_split(Task(), write(tmp_path / "data", **files), "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer1": "a", "question": "q"}', "line 1: no field 'context'"),
        ('{"answer1": 3, "context": "c", "question": "q"}', "line 1: field 'answer1' is not text"),
        ('{"answer1": " ", "context": "c", "question": "q"}', "line 1: answer1 is empty"),
        ('{"answer1": ', "line 1: broken JSON"),
        ("[]", "line 1: not a JSON object"),
        (
            r'{"answer1": "\ud800", "context": "c", "question": "q"}',
            "line 1: not valid Unicode: half of a surrogate",
        ),
    ],
)
def test_bad_objects_are_named(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, val_jsonl=[line])
    with pytest.raises(UserError, match=rf"val\.jsonl, {message}"):
        read_split(find_task("fairytaleqa"), tmp_path, "val")


def test_unknown_tasks_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no 'glge/squadqg'; did you mean glge/squad_qg\?"
    ):
        find_task("glge/squadqg")
    with pytest.raises(UserError, match="nmt/en-en has one language"):
        find_task("nmt/en-en")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_split(Task(), tmp_path / "nowhere", "test")


def test_shorten_gives_the_longest_beginning() -> None:
    tokenizer = read_tokenizer(tokenizer_bytes())
    text = "the query reads the mask and writes a beam"
    for limit in range(1, len(tokenizer.encode(text)) + 1):
        short = shorten(text, tokenizer, limit)
        assert text.startswith(short) and limit - 1 <= len(tokenizer.encode(short)) <= limit
    assert shorten(text, tokenizer, 100) == text


@pytest.mark.parametrize(
    "content", [bart_json(), bart_json(add_prefix_space=True), tokenizer_bytes()]
)
def test_shorten_cuts_no_character(content: bytes) -> None:
    tokenizer = read_tokenizer(content)
    text = "the \u65e5\u672c \U0001f600\U0001f600 mask"
    for limit in range(len(tokenizer.encode(text)) + 1):
        short = shorten(text, tokenizer, limit).strip()
        assert text.startswith(short) and len(tokenizer.encode(short)) <= limit


def test_decoding_options() -> None:
    task = Task(decoding={"ar": {"num_beams": 4}})
    assert decoding_options(task, ["ar", "nar"], ["nar.iterations=3", "ar.num_beams=1"]) == {
        "ar": {"num_beams": 1},
        "nar": {"iterations": 3},
    }
    for modes, change, message in (
        (["ar"], "nar.iterations=3", "mode 'nar' is not evaluated"),
        (["ar"], "iterations=3", "write it as MODE.OPTION=VALUE"),
        (["best"], "", "mode: there is no 'best'"),
        (["ar", "nar"], "nar.num_beams=3", 'num_beams: mode "nar" has no such option'),
        (["ar"], "ar.mode=nar", 'mode: mode "ar" has no such option'),
        (["ar"], "ar.num_return_sequences=2", "must be 1 where outputs are scored, but is 2"),
    ):
        with pytest.raises(UserError, match=message):
            decoding_options(task, modes, [change] if change else [])


def test_questions_are_grouped_and_compared_in_lower_case() -> None:
    task = find_task("glge/squad_qg")
    examples = TaskSplit(
        ["s", "s", "t"], ["what is it ?", "who was it then ?", "where is it now ?"]
    )
    found = score_texts(task, ["nothing", "Who was it then ?", "WHERE is it now ?"], examples)
    assert found.values["bleu4"] == pytest.approx(100) and found.values[
        "coco_rougeL"
    ] == pytest.approx(100)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = read_tokenizer(tokenizer_bytes())
    shape: dict[str, Any] = {**SHAPE, "vocab_size": tokenizer.vocab_size, "max_positions": 40}
    folder = tmp_path_factory.mktemp("model")
    JanusModel(tiny_model(**shape), tokenizer).save_pretrained(folder)
    return folder


def test_evaluate_writes_a_row_for_each_mode(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    glge: Path,
    model_folder: Path,
) -> None:
    report, data = glge / "report.json", glge / "easy"
    arguments = (
        "--model",
        model_folder,
        "--task",
        "glge/squad_qg",
        "--data",
        data,
        "--output",
        report,
    )
    arguments = (*arguments, "--mode", "ar,nar", "--set", "nar.iterations=2", "--card")
    assert run_script(monkeypatch, "launchers/evaluate.py", "task", *arguments) == 0
    found = json.loads(report.read_text())
    assert found["sentences"] == 3 and [row["mode"] for row in found["rows"]] == ["ar", "nar"]
    examples = read_split(find_task("glge/squad_qg"), data, "test")
    for row in found["rows"]:
        texts = Path(row["predictions"]).read_text().splitlines()
        assert row["metrics"] == score_texts(find_task("glge/squad_qg"), texts, examples).values
        assert row["sentences_per_s"] == pytest.approx(3 / row["seconds"])
    on_card = read_origin(model_folder).evaluation
    for row in found["rows"]:
        for name, value in row["metrics"].items():
            assert on_card[f"test/glge/squad_qg/{row['mode']}/{name}"] == value
    nar = found["rows"][1]
    assert nar["decoder_passes"] == 2 and nar["options"] == {
        "max_length": 38,
        "iterations": 2,
        "length_beam": 5,
    }
    model = JanusModel.from_pretrained(model_folder)
    expected = model.generate(examples.sources, mode="nar", **nar["options"])
    assert Path(nar["predictions"]).read_text().splitlines() == [
        " ".join(g.text.split()) for g in expected
    ]
    assert "bleu4" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--task": "glue"}, "task: there is no 'glue'"),
        ({"--mode": "ar,best"}, "mode: there is no 'best'"),
        ({"--split": "dev"}, "no dev.src, nor squadqg_data/org_data/dev.src"),
        ({"--model": "nowhere"}, "nowhere: no exported model here"),
        ({"--output": "no/where"}, "no/where: cannot be written"),
        ({"--output": "."}, ".: cannot be written: Is a directory"),
        (
            {"--mode": "ar,nar", "--set": "nar.max_length=99"},
            "max_length: 99 is more than the 38 tokens",
        ),
        ({"--set": "ar.iterations=2"}, 'iterations: mode "ar" has no such option'),
    ],
)
def test_mistakes_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    glge: Path,
    model_folder: Path,
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(glge)
    arguments = {
        "--model": model_folder,
        "--task": "glge/squad_qg",
        "--data": "easy",
        "--output": "out",
        **changes,
    }
    assert run_script(monkeypatch, "launchers/evaluate.py", "task", *chain(*arguments.items())) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert {path.name for path in glge.iterdir()} == {"easy", "hard"}, (
        "nothing was decoded before it was told"
    )


def test_a_corpus_for_each_split(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is stored is what the row says, sources cut, pairs with long targets left out; checked by decoding it."""
    tokenizer = read_tokenizer(tokenizer_bytes())
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes())
    long_text = "the query reads the beam " * 100
    data = write(
        tmp_path / "xsum_data" / "org_data",
        train_src=[*SOURCES, long_text], train_tgt=["a token", "the mask " * 90, "a length", "a pass"],
        dev_src=SOURCES, dev_tgt=TARGETS,
    )  # fmt: skip
    corpora = tmp_path / "corpora"
    arguments = (
        "--data",
        data.parents[1],
        "--tokenizer",
        tmp_path / "tokenizer.model",
        "--output",
        corpora,
    )
    assert (
        run_script(
            monkeypatch,
            "data_prep/build_task.py",
            "--task",
            "glge/xsum",
            *arguments,
            "--workers",
            1,
        )
        == 0
    )
    assert "3 pairs; 1 were skipped" in capfd.readouterr().out
    assert read_manifest(corpora / "dev").samples == 3 and read_manifest(
        corpora / "train"
    ).fields == (
        "source",
        "target",
    )
    stored = (corpora / "train.source").read_text().splitlines()
    assert stored[:2] == [SOURCES[0], "the mask and the beam"] and long_text.startswith(stored[2])
    assert 505 < len(tokenizer.encode(stored[2])) <= 510
    samples = webdataset.WebDataset(
        str(corpora / "train" / "shard-000000.tar"), shardshuffle=False
    ).decode()
    pairs = [
        (tokenizer.decode(sample["source.npy"]), tokenizer.decode(sample["target.npy"]))
        for sample in samples
    ]
    assert pairs == list(zip(stored, ["a token", "a length", "a pass"], strict=True))
    write(data, train_src=SOURCES, train_tgt=TARGETS)
    assert (
        run_script(monkeypatch, "data_prep/build_task.py", "--task", "glge/xsum", *arguments) == 2
    )
    assert (
        "corpora/train: holds a corpus of other texts; give another --output"
        in capfd.readouterr().err
    )
    assert (corpora / "train.source").read_text().splitlines() == stored, (
        "the corpus keeps its texts"
    )
    again = (*arguments, "--workers", 1, "--overwrite")
    assert run_script(monkeypatch, "data_prep/build_task.py", "--task", "glge/xsum", *again) == 0
    assert (corpora / "train.target").read_text().splitlines() == TARGETS and read_manifest(
        corpora / "train"
    ).samples == 3
