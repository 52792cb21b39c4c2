"""Evaluate a model on a task's split: decode it in every mode asked for, score, time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_pt.export.card import add_evaluation
from janus_pt.generate.modes import MODES, check_scored_options
from janus_pt.inference.janus_model import Generation, JanusModel
from janus_pt.tasks.metrics import check_metrics, compute
from janus_pt.tasks.outputs import Outputs, Scores, pair_up
from janus_pt.tasks.reading import TaskSplit, read_split, shorten
from janus_pt.tasks.table import Task, find_task
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.errors import UserError
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import check_writable, write_json

Options = dict[str, Any]
"""Options of `JanusModel.generate`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate.py task`."""
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument(
        "--task",
        required=True,
        help="nmt, nmt/de-en, glge/NAME or another row of janus_pt/tasks/table.py",
    )
    parser.add_argument("--data", required=True, help="the task's data folder")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--mode", default="ar", help="comma-separated ways to decode (default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="MODE.OPTION=VALUE",
        help="change a decoding option of the task",
    )
    parser.add_argument(
        "--batch-size", type=int, help="inputs decoded together; default: the model's"
    )
    parser.add_argument(
        "--card", action="store_true", help="write the model's card anew, with these scores"
    )
    add_json_flag(
        parser, "file for the report; predictions go beside it", "--output", required=True
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate as the command line asks; print the table."""
    report = evaluate(
        args.model,
        args.task,
        args.data,
        args.split,
        args.mode.split(","),
        args.json,
        changes=args.set,
        batch_size=args.batch_size,
    )
    if args.card:
        add_evaluation(args.model, card_scores(report))
    print_table(report)


def card_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """A report's metrics by the names that a model card has for them."""
    scores = {}
    for row in report["rows"]:
        for name, value in row["metrics"].items():
            scores[f"{report['split']}/{report['task']}/{row['mode']}/{name}"] = value
    return scores


def evaluate(
    model: str | JanusModel,
    task_name: str,
    data: str,
    split: str,
    modes: Sequence[str],
    output: str,
    changes: Sequence[str] = (),
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Evaluate in each mode and write the report; predictions go to `OUTPUT.MODE.txt`, one a line.

    Args:
        model: a loaded model, or the folder of an exported one.
        modes: modes of `JanusModel.generate`.
        output: file for the report.
        changes: `MODE.OPTION=VALUE` each, applied to the task's decoding defaults.
        batch_size: inputs decoded together; default: the model's own.

    Returns:
        The report: what was evaluated, and `rows`, one for each mode: its options, metrics with
        signatures, mean decoder passes of a sentence, seconds and sentences per second of decoding.

    Raises:
        UserError: an unknown task, mode or option, data that cannot be read, or a package that is
            missing.
    """
    # Everything that can be wrong is checked before the model is loaded and anything is decoded.
    task = find_task(task_name)
    check_metrics(task.metrics)
    changed_options = decoding_options(task, modes, changes)
    examples = read_split(task, data, split)
    check_writable(output)
    if isinstance(model, str):
        model = JanusModel.from_pretrained(model)
    tokenizer, longest_text = model.source_tokenizer, model.config.longest_text
    sources, max_length = fitting(task, examples, tokenizer, longest_text)
    common: Options = {"max_length": max_length}
    batching: Options = {} if batch_size is None else {"batch_size": batch_size}
    options = {mode: {**common, **changed_options[mode], **batching} for mode in modes}
    # Options that this model cannot follow are reported before the first mode is decoded, not hours
    # later when their mode is reached.
    for mode in modes:
        model.generate(sources[:1], mode=mode, **options[mode])
    rows = []
    for mode in modes:
        row, texts = _evaluate_mode(model, task, sources, examples, mode, options[mode])
        path = Path(f"{Path(output).with_suffix('')}.{mode}.txt")
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        rows.append({**row, "predictions": str(path)})
    # Reported, since a cut source explains a bad output.
    shortened = sum(a != b for a, b in zip(sources, examples.sources, strict=True))
    report = {
        "task": task_name,
        "data": data,
        "split": split,
        "sentences": len(sources),
        "shortened": shortened,
        "rows": rows,
    }
    write_json(output, report)
    return report


def decoding_options(
    task: Task, modes: Sequence[str], changes: Sequence[str]
) -> dict[str, Options]:
    """mode -> options: the task's defaults with `changes` applied.

    Args:
        changes: `MODE.OPTION=VALUE` each; a value that is no JSON is text.

    Raises:
        UserError: an unknown mode, an option that a mode does not have or that scoring forbids, or
            a change that is written differently.
    """
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"mode: there is no {mode!r}; use one of: {', '.join(MODES)}")
    options = {mode: dict(task.decoding.get(mode, {})) for mode in modes}
    for change in changes:
        mode, option, value = _parse_change(change)
        if mode not in options:
            raise UserError(
                f"--set {change}: mode {mode!r} is not evaluated; --mode asks for "
                f"{', '.join(modes)}"
            )
        options[mode][option] = value
    # After all changes: a value that one of them sets may be wrong only beside another's.
    for mode, options_of_mode in options.items():
        check_scored_options(mode, **options_of_mode)
    return options


def _parse_change(change: str) -> tuple[str, str, Any]:
    """Mode, option and value of `MODE.OPTION=VALUE`."""
    name, equals, text = change.partition("=")
    mode, dot, option = name.partition(".")
    if not (equals and dot and option):
        raise UserError(f"--set {change}: write it as MODE.OPTION=VALUE, as in nar.iterations=4")
    try:
        return mode, option, json.loads(text)
    # Text needs no quotes on the command line; the option's own check names what is no number.
    except ValueError:
        return mode, option, text


def fitting(
    task: Task, examples: TaskSplit, tokenizer: Tokenizer, longest_text: int
) -> tuple[list[str], int]:
    """Sources cut to what task and model read, and the most tokens that decoding may write."""
    limit = min(task.max_source_tokens, longest_text)
    sources = [shorten(source, tokenizer, limit) for source in examples.sources]
    return sources, min(task.max_target_tokens, longest_text)


def text_of(generation: Generation) -> str:
    """An output as it is scored: on one line, single spaces."""
    return " ".join(generation.text.split())


def score_texts(task: Task, texts: Sequence[str], examples: TaskSplit) -> Scores:
    """The task's metrics on `texts`, one for each example."""
    return compute(comparable(task, texts, examples), task.metrics)


def comparable(task: Task, texts: Sequence[str], examples: TaskSplit) -> Outputs:
    """Outputs with their references, grouped and in lower case where the task's row says so."""
    sources = examples.sources if task.group_by_source else None
    outputs = pair_up(texts, [examples.targets], sources)
    return outputs.map_texts(str.lower) if task.lowercase else outputs


def print_table(report: Mapping[str, Any]) -> None:
    """Print a report's rows, one metric a column."""
    names = list(report["rows"][0]["metrics"])
    rows = []
    for row in report["rows"]:
        numbers = [*row["metrics"].values(), row["decoder_passes"], row["sentences_per_s"]]
        rows.append([row["mode"], *(f"{number:.2f}" for number in numbers)])
    print(f"{report['task']}, {report['split']}: {report['sentences']} sentences")
    print(format_table(rows, ["mode", *names, "passes", "sentences/s"], align="lr"))


def _evaluate_mode(
    model: JanusModel,
    task: Task,
    sources: list[str],
    examples: TaskSplit,
    mode: str,
    options: Options,
) -> tuple[dict[str, Any], list[str]]:
    """The report's row of a mode, without its file, and the texts that were decoded."""
    # Tokenising and the encoder are counted; loading the model and scoring are not.
    start = time.monotonic()
    generations = model.generate(sources, mode=mode, **options)
    seconds = time.monotonic() - start
    texts = [text_of(generation) for generation in generations]
    scores = score_texts(task, texts, examples)
    passes = sum(generation.decoder_passes for generation in generations)
    row = {
        "mode": mode,
        "options": options,
        "metrics": scores.values,
        "signatures": scores.signatures,
        "decoder_passes": passes / len(texts),
        "seconds": seconds,
        "sentences_per_s": len(texts) / seconds,
    }
    return row, texts
