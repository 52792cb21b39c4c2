"""The demo's model: dates, times and amounts as they are spoken, learnt from nothing in minutes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from janus_pt.commands.demo_steps import call, train, train_tokenizer
from janus_pt.tasks.metrics import compute
from janus_pt.tasks.outputs import Outputs
from janus_pt.tasks.reading import TaskSplit, read_split
from janus_pt.tasks.table import find_task
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.extras import require
from janus_pt.utils.tables import format_table

if TYPE_CHECKING:
    from janus_pt.inference.janus_model import JanusModel

TASK = "pairs"
SPEED_REPEATS = 1
PAGE_TEXT = "Tue 5 Mar 2024, 17:45, $24.50"
"""What the page decodes first."""
EXAMPLES = 5
"""Outputs shown beside their source."""


@dataclass(frozen=True)
class Way:
    """A way to decode: mode and options of `JanusModel.generate`."""

    mode: str
    options: Mapping[str, Any]

    @property
    def flags(self) -> list[str]:
        """The same for `janus-pt generate`."""
        flags = ["--mode", self.mode]
        for name, value in self.options.items():
            flags += [f"--{name.replace('_', '-')}", str(value)]
        return flags


GREEDY, BEAM, NAR = "AR, greedy", "AR, beam 5", "NAR, 4 passes"
WAYS = {
    GREEDY: Way("ar", {"num_beams": 1}),
    BEAM: Way("ar", {"num_beams": 5}),
    "NAR, 1 pass": Way("nar", {"iterations": 1, "length_beam": 1}),
    NAR: Way("nar", {"iterations": 4, "length_beam": 1}),
    "NAR, 4 passes, 3 lengths, chosen by AR": Way("rerank", {"iterations": 4, "length_beam": 3}),
    "AR, drafted by NAR (speculative)": Way("speculative", {}),
}


def build_pairs(folder: Path, pairs: int) -> tuple[Path, Path]:
    """Make the pairs and their corpora; returns the tokenizers of sources and targets."""
    data = folder / "spoken"
    source, target = folder / "written.model", folder / "words.model"
    call("prep", "spoken-forms", "--pairs", str(pairs), "--output", str(data))
    # Pieces of BPE are numbers of two digits, months, "$1": more of the task than characters say.
    train_tokenizer(data / "train.src", source, "--model-type", "bpe", "--vocab-size", "600")
    train_tokenizer(data / "train.tgt", target, "--model-type", "word")
    command = ["prep", "build-task", "--task", TASK, "--data", str(data)]
    command += ["--source-tokenizer", str(source), "--tokenizer", str(target)]
    call(*command, "--output", str(folder / "spoken_corpora"))
    return source, target


def train_on_pairs(
    folder: Path, run: Path, tokenizers: tuple[Path, Path], changes: Sequence[str]
) -> None:
    """Train the model on two processes."""
    source, target = (load_tokenizer(path).vocab_size for path in tokenizers)
    settings = [
        f"model.source_vocab_size={source}",
        f"model.vocab_size={target}",
        f"run.output_dir={run}",
        f"data.train.0.path={folder}/spoken_corpora/train",
        f"data.valid={folder}/spoken_corpora/dev",
    ]
    train("finetune", "spoken_tiny", [*settings, *changes])


def show_model(folder: Path, model_folder: Path, tested: int, timed: int) -> None:
    """Decode the test set in every way; print quality, speed and examples.

    Args:
        tested, timed: sentences of the test set that are decoded, and timed.
    """
    # Imported here: the rest of the demo needs no torch in this process.
    from janus_pt.inference.janus_model import JanusModel

    whole_test = read_split(find_task(TASK), folder / "spoken", "test")
    test = TaskSplit(whole_test.sources[:tested], whole_test.targets[:tested])
    train_split = read_split(find_task(TASK), folder / "spoken", "train")
    print("\nDecoding; each of these can be run by hand:")
    for way in WAYS.values():
        command = ["generate", "--model", str(model_folder), *way.flags]
        print(f"$ janus-pt {shlex.join(command)} --input {folder}/spoken/test.src", flush=True)
    model = JanusModel.from_pretrained(model_folder)
    outputs = {}
    for name, way in WAYS.items():
        generations = model.generate(test.sources, mode=way.mode, **way.options)
        outputs[name] = [generation.text for generation in generations]
    speeds = measure_speeds(model, test.sources[:timed])
    print("\n" + quality_table(test, nearest_targets(test, train_split), outputs, speeds) + "\n")
    print_examples(test, outputs)
    print(f"model: {model_folder}")


def measure_speeds(model: JanusModel, sources: Sequence[str]) -> dict[str, float]:
    """Sentences/s of every way, one sentence at a time, on one thread."""
    import torch

    from janus_pt.benchmark.timing import time_ways

    # Two threads wait for each other longer than these small products take.
    torch.set_num_threads(1)
    jobs = [partial(model.generate, mode=way.mode, **way.options) for way in WAYS.values()]
    rates = time_ways(jobs, sources, [1], SPEED_REPEATS)
    return {name: rate[1].sentences_per_s for name, rate in zip(WAYS, rates, strict=True)}


def nearest_targets(test: TaskSplit, train_split: TaskSplit) -> list[str]:
    """The baseline: for each test source the target of the most similar source seen in training."""
    process = require("rapidfuzz.process", "demo")
    distance = require("rapidfuzz.distance", "demo").Levenshtein.distance
    targets = []
    for source in test.sources:
        _, _, index = process.extractOne(source, train_split.sources, scorer=distance)
        targets.append(train_split.targets[index])
    return targets


def quality_table(
    test: TaskSplit,
    baseline: Sequence[str],
    outputs: Mapping[str, Sequence[str]],
    speeds: Mapping[str, float],
) -> str:
    """Exact match, word error rate and speed of the baseline and of every way."""
    rows = [["nearest training example", *_scores(baseline, test), "", ""]]
    for name, texts in outputs.items():
        speed, ratio = speeds[name], speeds[name] / speeds[BEAM]
        rows.append([name, *_scores(texts, test), f"{speed:.1f}", f"{ratio:.1f}x"])
    headers = (
        f"test set, {len(test.sources)} pairs",
        "exactly right",
        "word error rate",
        "sentences/s",
        "beam 5 = 1",
    )
    return format_table(rows, headers, align="lrrrr")


def _scores(texts: Sequence[str], test: TaskSplit) -> list[str]:
    """Exact match and word error rate as text."""
    outputs = Outputs(texts, [[target] for target in test.targets])
    values = compute(outputs, ["exact_match", "wer"]).values
    return [f"{values['exact_match']:.1f} %", f"{values['wer']:.1f} %"]


def print_examples(test: TaskSplit, outputs: Mapping[str, Sequence[str]]) -> None:
    """Print some sources, spread over the test set, with the outputs of both decoders."""
    step = max(1, len(test.sources) // EXAMPLES)
    for index in range(0, EXAMPLES * step, step):
        rows = [["written", "", test.sources[index]]]
        for name, label in ((GREEDY, "AR"), (NAR, "NAR")):
            text = outputs[name][index]
            mark = "right" if text == test.targets[index] else "wrong"
            rows.append([label, mark, text])
        print(format_table(rows, align="l") + "\n")


def print_next_steps(model_folder: Path) -> None:
    """The last lines: how to look at the model in a browser."""
    address = f"http://127.0.0.1:8000/?text={quote(PAGE_TEXT)}"
    print(f"\nSee it decode both ways, pass by pass, at {address} :")
    print(f"$ janus-pt serve --model {model_folder}")
