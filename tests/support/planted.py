"""A corpus in which it is known what should be removed, and why.

python -m tests.support.planted FOLDER --documents 200000 builds it, runs the pipeline and prints precision and recall.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from janus_pt.data_prep.pipeline.executors import run_local, run_task
from janus_pt.data_prep.pipeline.report import collect
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.stages import make_stages
from janus_pt.data_prep.pipeline.state import begin

SHARES = {"copy": 0.2, "near": 0.1, "test": 0.05, "foreign": 0.1, "boilerplate": 0.05}
CLEANING = {"language": "foreign", "quality": "boilerplate", "decontamination": "test"}
"""Filter -> what it is to remove."""
FILES = 8
WORDS = json.loads(Path(__file__).with_name("planted_words.json").read_text())


@dataclass
class Planted:
    """Where everything is; a document is known by its id, FILE:LINE."""

    files: str
    """Pattern of the jsonl files."""
    tests: Path
    """A test sentence a line."""
    kind: dict[str, str] = field(default_factory=dict)
    """Of each document: `original`, or one of `SHARES`."""
    original: dict[str, str] = field(default_factory=dict)
    """Of each copy and near duplicate: the document it is made from."""
    jaccard: dict[str, float] = field(default_factory=dict)
    """Of each near duplicate and its original: similarity of their sets of 5 words in a row."""


def sentence(rng: random.Random, ending: str = "") -> str:
    """An English sentence, one of 10^11."""
    nouns = rng.choices(WORDS["nouns"], k=3)
    first, second = rng.choices(WORDS["adjectives"], k=2)
    verb = rng.choice(WORDS["verbs"])
    last = ending or rng.choice(WORDS["endings"])
    return f"The {first} {nouns[0]} of the {nouns[1]} {verb} the {second} {nouns[2]} {last}."


def document(rng: random.Random, sentences: int = 8) -> str:
    # No ending twice: repeated words are what filters look for.
    return " ".join(sentence(rng, ending) for ending in rng.sample(WORDS["endings"], sentences))


def foreign(rng: random.Random) -> str:
    parts = WORDS["foreign"][rng.choice(sorted(WORDS["foreign"]))]
    return " ".join(rng.choice(part) for _ in range(8) for part in parts)


def near(text: str, rng: random.Random) -> str:
    """A copy with one to three other words."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), rng.randint(1, 3)):
        words[place] = rng.choice(["several", "hardly", "almost", "perhaps"])
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().replace(".", "").split()
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def plant(folder: Path, documents: int, seed: int = 1) -> Planted:
    """Write the corpus and its test sentences. Exact and near duplicates have different originals."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tests = [sentence(rng) for _ in range(200)]
    for name in ("Anna's", "Peter's", "Maria's", "Oliver's"):
        verb, noun = rng.choice(WORDS["verbs"]), rng.choice(WORDS["nouns"])
        # Of six words: fewer than any n-gram that is looked for.
        tests.append(f"Nobody {verb} {name} gloomy {noun} again.")
    planted = Planted(str(folder / "part-*.jsonl"), folder / "tests.txt")
    planted.tests.write_text("\n".join(tests) + "\n")
    counts = {kind: int(share * documents) for kind, share in SHARES.items()}
    originals = [document(rng) for _ in range(documents - sum(counts.values()))]
    rows: list[tuple[str, str, int | None]] = [("original", text, None) for text in originals]
    for number in range(counts["copy"]):
        rows.append(("copy", originals[number], number))
    for number in range(counts["copy"], counts["copy"] + counts["near"]):
        rows.append(("near", near(originals[number], rng), number))
    for _ in range(counts["test"]):
        text = f"{document(rng, 4)} {rng.choice(tests)} {document(rng, 4)}"
        rows.append(("test", text, None))
    rows += [("foreign", foreign(rng), None) for _ in range(counts["foreign"])]
    for _ in range(counts["boilerplate"]):
        rows.append(("boilerplate", "\n".join(rng.choices(WORDS["menu"], k=60)), None))
    _write(planted, folder, rows, rng)
    return planted


def _write(
    planted: Planted, folder: Path, rows: list[tuple[str, str, int | None]], rng: random.Random
) -> None:
    """Write the rows in random order, and note where each went."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    place = {}
    for file in range(FILES):
        path = folder / f"part-{file}.jsonl"
        with path.open("w") as output:
            for line, row in enumerate(order[file::FILES], start=1):
                output.write(json.dumps({"text": rows[row][1]}, ensure_ascii=False) + "\n")
                place[row] = f"{path}:{line}"
    for row, (kind, text, original) in enumerate(rows):
        planted.kind[place[row]] = kind
        if original is not None:
            planted.original[place[row]] = place[original]
        if kind == "near" and original is not None:
            left, right = shingles(text), shingles(rows[original][1])
            planted.jaccard[place[row]] = len(left & right) / len(left | right)


def build_config(
    planted: Planted, output: Path, tokenizer: Path, **changes: Any
) -> CorpusBuildConfig:
    """The pipeline that should remove it all; every removed document is listed."""
    values: dict[str, Any] = {
        "output": str(output),
        "sources": [{"name": "planted", "path": planted.files, "format": "jsonl"}],
        "tasks": 4,
        "filters": {
            "language": {"keep": ["en"]},
            "gopher_repetition": {},
            "gopher_quality": {"min_words": 40},
            "c4": {},
            "fineweb": {},
        },
        "deduplication": {"exact": ["text"], "minhash": {}},
        "decontamination": {"tests": [{"name": "planted", "path": str(planted.tests)}], "n_grams": 10},
        "tokenizer": {"path": str(tokenizer)},
        "shards": {"max_tokens": 126, "samples_per_shard": 1000},
        "removed_samples": 10**9,
    }  # fmt: skip
    return CorpusBuildConfig.model_validate({**values, **changes})


def run_inline(config: CorpusBuildConfig) -> None:
    """All stages in this process, task after task."""
    begin(config, overwrite=False)
    for index, stage in enumerate(make_stages(config)):
        for rank in range(stage.tasks):
            problem = run_task(config.model_dump_json(), index, rank)
            assert not problem, f"stage {stage.name}, task {rank}: {problem}"


def scores(planted: Planted, config: CorpusBuildConfig) -> dict[str, tuple[int, float, float]]:
    """(planted, precision, recall) by filter.

    Recall: the planted documents that any filter removed, since a menu may go for its language. Precision: what the
    filter removed and was planted, of whatever kind. Of a pair of duplicates either may go.
    """
    removed = {
        name: {text["id"] for texts in entry["samples"].values() for text in texts}
        for name, entry in collect(Path(config.work_folder), 10**9).items()
    }
    quality = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
    removed["quality"] = set().union(*(removed.get(name, set()) for name in quality))
    cleaned = set().union(*(removed.get(name, set()) for name in (*CLEANING, "quality")))
    junk = {place for place, kind in planted.kind.items() if kind in CLEANING.values()}
    result = {}
    for name, kind in CLEANING.items():
        wanted = {place for place, its in planted.kind.items() if its == kind}
        found = removed.get(name, set())
        precision = len(found & junk) / max(len(found), 1)
        result[name] = (len(wanted), precision, len(cleaned & wanted) / max(len(wanted), 1))
    result["exact_text"] = _pair_score(planted, removed.get("exact_text", set()), "copy", 0.0)
    near = removed.get("minhash", set())
    result["minhash"] = _pair_score(planted, near, "near", 0.0)
    result["minhash, Jaccard ≥ 0.8"] = _pair_score(planted, near, "near", 0.8)
    return result


def _pair_score(
    planted: Planted, found: set[str], kind: str, least: float
) -> tuple[int, float, float]:
    """Of pairs: found if one of the two went; right if what went is of any such pair."""
    pairs = [
        {place, planted.original[place]}
        for place, its in planted.kind.items()
        if its == kind and planted.jaccard.get(place, 1.0) >= least
    ]
    members = {
        member
        for place, original in planted.original.items()
        if planted.kind[place] == kind
        for member in (place, original)
    }
    recall = sum(bool(pair & found) for pair in pairs) / max(len(pairs), 1)
    return len(pairs), len(found & members) / max(len(found), 1), recall


def table(planted: Planted, config: CorpusBuildConfig) -> str:
    rows = [
        [name, f"{count:,}", f"{precision:.4f}", f"{recall:.4f}"]
        for name, (count, precision, recall) in scores(planted, config).items()
    ]
    headers = ["filter", "planted", "precision", "recall"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    from tests.support.corpus_text import tokenizer

    planted = plant(args.folder / "input", args.documents)
    path = args.folder / "tokenizer.model"
    path.write_bytes(tokenizer().content)
    config = build_config(planted, args.folder / "corpus", path)
    begin(config, overwrite=False)
    start = time.perf_counter()
    run_local(config, args.workers)
    print(
        f"{args.documents:,} documents, {args.workers} workers: {time.perf_counter() - start:.0f} s"
    )
    print(table(planted, config))


if __name__ == "__main__":
    main()
