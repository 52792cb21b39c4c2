"""How the pipeline's time, memory and disk grow with the number of documents, by stage.

python -m tests.support.growth FOLDER --documents 1000000 writes short documents, runs every stage in processes of its
own, and prints a row a stage. The same command continues what was killed; `stages.jsonl` has the rows, and a task that
was done twice counts once.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from tabulate import tabulate

from janus_pt.data_prep.pipeline.executors import run_task
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.stages import make_stages
from janus_pt.data_prep.pipeline.state import begin
from janus_pt.data_prep.train_tokenizer import train
from janus_pt.utils.processes import worker_pool
from tests.support.planted import WORDS

COPIES, NEAR = 0.10, 0.05
"""Parts of the documents that are an earlier one again, exactly or with another last word."""
REMEMBERED = 100_000
"""Earlier documents of which one may come again."""
SMALL_WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "for",
    "with",
    "his",
    "her",
    "they",
    "at",
    "from",
)
"""Half of the words are one of these, so that the text is English to the language model."""


def vocabulary() -> list[str]:
    endings = " ".join(WORDS["endings"]).split()
    content = sorted({*WORDS["nouns"], *WORDS["adjectives"], *WORDS["verbs"], *endings})
    return content + list(SMALL_WORDS) * (len(content) // len(SMALL_WORDS))


def texts(count: int, seed: int = 1) -> Any:
    """Yield documents of 10 to 20 words."""
    rng = random.Random(seed)
    words = vocabulary()
    earlier: list[str] = []
    for _ in range(count):
        kind = rng.random()
        if earlier and kind < COPIES + NEAR:
            text = rng.choice(earlier)
            if kind >= COPIES:
                text = f"{text.rpartition(' ')[0]} {rng.choice(words)}"
        else:
            text = " ".join(rng.choices(words, k=rng.randint(10, 20)))
        yield text
        if len(earlier) < REMEMBERED:
            earlier.append(text)
        else:
            earlier[rng.randrange(REMEMBERED)] = text


def write_input(folder: Path, count: int, per_task: int) -> None:
    """A file a task, and a tokenizer; nothing if they are there."""
    if (folder / "tokenizer.model").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    source = texts(count)
    for file in range(-(-count // per_task)):
        with (folder / f"part-{file:05d}.jsonl").open("w") as output:
            for _, text in zip(range(per_task), source, strict=False):
                output.write(json.dumps({"text": text}) + "\n")
    content = train(list(texts(5000, seed=2)), 400).content
    (folder / "tokenizer.model").write_bytes(content)


def build_config(folder: Path, count: int, per_task: int) -> CorpusBuildConfig:
    return CorpusBuildConfig.model_validate(
        {
            "output": str(folder / "corpus"),
            "sources": [
                {"name": "s", "path": str(folder / "input/part-*.jsonl"), "format": "jsonl"}
            ],
            "tasks": -(-count // per_task),
            "filters": {"language": {"keep": ["en"], "threshold": 0.3}},
            "deduplication": {"exact": ["text"], "minhash": {}},
            "tokenizer": {"path": str(folder / "input" / "tokenizer.model")},
        }
    )


def peak_kib() -> int:
    """Peak memory of this process. Not `ru_maxrss`, which begins with the memory of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measured_task(config: str, stage: int, rank: int) -> tuple[str, float, int]:
    """(what went wrong, processor seconds, peak memory in KiB so far) of a task, in its process."""
    start = time.process_time()
    problem = run_task(config, stage, rank)
    return problem, time.process_time() - start, peak_kib()


def disk_bytes(*folders: str) -> int:
    """Bytes of all files in these folders."""
    return sum(
        path.stat().st_size for name in folders for path in Path(name).rglob("*") if path.is_file()
    )


def run_stage(config: CorpusBuildConfig, index: int, workers: int, rows: Path) -> dict[str, Any]:
    """Run a stage with fresh processes, so that their peaks are the stage's own."""
    stage = make_stages(config)[index]
    text = config.model_dump_json()
    start = time.perf_counter()
    seconds, peak = 0.0, 0
    with worker_pool(min(workers, stage.tasks)) as pool:
        futures = [pool.submit(measured_task, text, index, rank) for rank in range(stage.tasks)]
        for future in as_completed(futures):
            problem, processor, kib = future.result()
            assert not problem, f"{stage.name}: {problem}"
            seconds += processor
            peak = max(peak, kib)
    row = {
        "stage": stage.name,
        "tasks": stage.tasks,
        "processor": seconds,
        "wall": time.perf_counter() - start,
        "peak": peak * 1024,
        "disk": disk_bytes(config.work_folder, config.output),
    }
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def table(rows: list[dict[str, Any]], documents: int) -> str:
    shown = [
        [
            row["stage"],
            row["tasks"],
            f"{row['processor']:.0f}",
            f"{1e6 * row['processor'] / documents:.0f}",
            f"{row['wall']:.0f}",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['disk'] / 1e6:,.0f}",
        ]
        for row in rows
    ]
    headers = [
        "stage", "tasks", "processor s", "µs a document", "wall s", "largest process, MB", "disk after it, MB",
    ]  # fmt: skip
    return tabulate(shown, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--documents-per-task", type=int, default=250_000)
    args = parser.parse_args()
    write_input(args.folder / "input", args.documents, args.documents_per_task)
    config = build_config(args.folder, args.documents, args.documents_per_task)
    begin(config, overwrite=False)
    path = args.folder / "stages.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for index in range(len(rows), len(make_stages(config))):
        rows.append(run_stage(config, index, args.workers, path))
        print(json.dumps(rows[-1]), flush=True)
    print(f"{args.documents:,} documents, {args.workers} workers")
    print(table(rows, args.documents))


if __name__ == "__main__":
    main()
