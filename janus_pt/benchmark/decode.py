"""`launchers/benchmark.py decode`: one table of all ways to decode one trained model, and other engines beside it.

Protocol (Kasai et al. 2020; Helcl et al. 2022; Schmidt et al. 2022): one machine, one run; batch 1, a middle one and
the largest; time of the encoder, of tokenising and of padding counted; decoder passes stated; sacrebleu and chrF with
their signatures. Each batch counts with the best of several repeats, in which the ways take turns: on a machine that
does other things, too, a busy moment then hits all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from sacrebleu.metrics import BLEU, CHRF

from janus_pt.benchmark.engines import rivals
from janus_pt.inference.cpu import PROJECTION, lay_out_for_cpu
from janus_pt.inference.janus_model import Generation, JanusModel
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import read_lines

Quantize = Literal["int8"] | None
WAYS: dict[str, dict[str, Any]] = {
    "AR greedy": dict(mode="ar"),
    "AR beam 5": dict(mode="ar", num_beams=5),
    "NAR 1 pass": dict(mode="nar", iterations=1),
    "NAR 4 passes": dict(mode="nar", iterations=4),
    "NAR 10 passes": dict(mode="nar", iterations=10),
    "rerank 4 passes, 5 lengths": dict(mode="rerank", iterations=4),
    "speculative": dict(mode="speculative"),
    "speculative, always redraft": dict(mode="speculative", redraft_at=1000),
}
PRECISIONS: dict[str, tuple[torch.dtype, Quantize]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.float32, "int8"),
}
PROFILED = 16
"""Sentences that are profiled."""
RIVAL_LENGTH = 32
"""Tokens of source and output where other engines are compared, as random weights end nowhere."""


@dataclass
class Row:
    """One way to decode in one precision. Speeds by batch size: sentences/s and tokens/s."""

    name: str
    precision: str
    bleu: float = 0.0
    chrf: float = 0.0
    passes: float = 0.0
    acceptance: float = 0.0
    as_greedy: float = 0.0
    """Share of the outputs that equal greedy search's in this precision and batch size, token for token."""
    sentences_per_s: dict[int, float] = field(default_factory=dict)
    tokens_per_s: dict[int, float] = field(default_factory=dict)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line after `decode`."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py decode", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument("--input", required=True, help="source text, one sentence a line")
    parser.add_argument("--reference", required=True, help="its translation")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--sentences", type=int, default=512, help="the first of them are timed; quality is of all"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--profile", action="store_true", help="say where the time of greedy and speculative goes"
    )
    parser.add_argument("--output", help="JSON file for all numbers")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print; `UserError` if the two files do not belong together."""
    asked = parse(arguments)
    sources, references = (read_lines(path) for path in (asked.input, asked.reference))
    if len(sources) != len(references) or not sources:
        raise UserError(
            f"{asked.reference}: {len(references)} lines, but {asked.input} has {len(sources)}"
        )
    torch.set_num_threads(asked.threads)
    print(
        f"{platform.processor() or platform.machine()}, {asked.threads} threads, torch {torch.__version__}"
    )
    rows: list[Row] = []
    bleu, chrf = BLEU(), CHRF()
    for precision in asked.precisions:
        dtype, quantize = PRECISIONS[precision]
        model = JanusModel.from_pretrained(asked.model, dtype, "cpu", quantize)
        rows += [Row(name, precision) for name in WAYS]
        measure_quality(
            model, rows[-len(WAYS) :], sources, references, max(asked.batch_sizes), bleu, chrf
        )
        measure_speed(model, rows[-len(WAYS) :], sources, asked)
    print(f"BLEU {bleu.get_signature()}\nchrF {chrf.get_signature()}")
    print_table(rows, asked.batch_sizes)
    model = JanusModel.from_pretrained(asked.model, device="cpu")
    others = compare(model, asked)
    if asked.profile:
        for name in ("AR greedy", "speculative"):
            print_profile(model, name, sources[:PROFILED])
    if asked.output:
        Path(asked.output).write_text(
            json.dumps({"ways": [asdict(row) for row in rows], "engines": others}, indent=1)
        )


def measure_quality(
    model: JanusModel,
    rows: list[Row],
    sources: list[str],
    references: list[str],
    size: int,
    bleu: BLEU,
    chrf: CHRF,
) -> None:
    """Decode everything in every way, greedy search first; scores and counts go into the rows."""
    greedy: list[Generation] = []
    for row in rows:
        outputs = model.generate(sources, batch_size=size, **WAYS[row.name])
        greedy = greedy or outputs
        texts = [output.text for output in outputs]
        row.bleu = bleu.corpus_score(texts, [references]).score
        row.chrf = chrf.corpus_score(texts, [references]).score
        row.passes = sum(output.decoder_passes for output in outputs) / len(outputs)
        row.acceptance = sum(o.accepted for o in outputs) / max(1, sum(o.drafted for o in outputs))
        same = sum(one.tokens == other.tokens for one, other in zip(outputs, greedy, strict=True))
        row.as_greedy = same / len(outputs)


def measure_speed(
    model: JanusModel, rows: list[Row], sources: list[str], asked: argparse.Namespace
) -> None:
    """Time the ways at every batch size; speeds go into the rows."""
    texts = sorted(sources[: asked.sentences], key=lambda text: -len(model.encode(text)))
    ways = [partial(model.generate, **WAYS[row.name]) for row in rows]
    for row, speeds in zip(
        rows, time_ways(ways, texts, asked.batch_sizes, asked.repeats), strict=True
    ):
        row.sentences_per_s = {size: sentences for size, (sentences, _) in speeds.items()}
        row.tokens_per_s = {size: tokens for size, (_, tokens) in speeds.items()}


def time_ways(
    ways: Sequence[Callable[..., list[Generation]]],
    texts: Sequence[str],
    batch_sizes: Sequence[int],
    repeats: int,
) -> list[dict[int, tuple[float, float]]]:
    """Sentences/s and tokens/s of each way by batch size; `texts` in order of length, so that batches are of like ones.

    Every batch counts with its best time over `repeats`, in which the ways take turns.
    """
    speeds: list[dict[int, tuple[float, float]]] = [{} for _ in ways]
    for size in batch_sizes:
        seconds, tokens = [0.0] * len(ways), [0] * len(ways)
        for start in range(0, len(texts), size):
            jobs = [partial(way, texts[start : start + size], batch_size=size) for way in ways]
            for index, (best, outputs) in enumerate(best_times(jobs, repeats)):
                seconds[index] += best
                tokens[index] += sum(len(output.tokens) for output in outputs)
        for own, spent, written in zip(speeds, seconds, tokens, strict=True):
            own[size] = len(texts) / spent, written / spent
    return speeds


def best_times(jobs: Sequence[Callable[[], Any]], repeats: int) -> list[tuple[float, Any]]:
    """The shortest time of each job over repeats that take turns, and what it gave. The first round warms up."""
    best: list[tuple[float, Any]] = [(float("inf"), None)] * len(jobs)
    for _ in range(repeats + 1):
        for index, job in enumerate(jobs):
            start = time.perf_counter()
            result = job()
            best[index] = min(
                best[index], (time.perf_counter() - start, result), key=lambda pair: pair[0]
            )
    return best


def print_table(rows: Sequence[Row], batch_sizes: Sequence[int]) -> None:
    """All rows; behind each speed how many times greedy search's in the same precision it is."""
    head = "".join(f"{f'batch {size}: sent/s':>18} (x greedy) {'tok/s':>6}" for size in batch_sizes)
    print(
        f"{'':28}{'precision':10}{'BLEU':>6}{'chrF':>6}{'passes':>7}{'accept':>7}{'=greedy':>8}{head}"
    )
    base = {row.precision: row for row in rows if row.name == "AR greedy"}
    for row in rows:
        speeds = "".join(
            f"{row.sentences_per_s[size]:>18.1f} "
            f"{'(' + format(row.sentences_per_s[size] / base[row.precision].sentences_per_s[size], '.2f') + ')':>10} "
            f"{row.tokens_per_s[size]:>6.0f}"
            for size in batch_sizes
        )
        accept = f"{row.acceptance:.0%}" if row.acceptance else ""
        print(
            f"{row.name:28}{row.precision:10}{row.bleu:>6.1f}{row.chrf:>6.1f}{row.passes:>7.1f}"
            f"{accept:>7}{row.as_greedy:>8.1%}{speeds}"
        )


def compare(model: JanusModel, asked: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Greedy search beside other engines of the same size: sentences/s by batch size. All read and write
    `RIVAL_LENGTH` tokens, theirs with random weights. Ours with both places where P_AR may be read off."""
    generator = torch.Generator().manual_seed(1)
    print(f"\ngreedy search, {RIVAL_LENGTH} tokens in and out, sentences/s")
    print(f"{'':28}" + "".join(f"{f'batch {size}':>10}" for size in asked.batch_sizes))

    def greedy(model: JanusModel, ids: list[list[int]]) -> Any:
        return model.generate(
            ids, "ar", batch_size=len(ids), min_length=RIVAL_LENGTH, max_length=RIVAL_LENGTH
        )

    engines: dict[str, Callable[[list[list[int]]], Any]] = {}
    for stream in ("query", "content"):
        for name in ("float32", "bfloat16"):
            engines[f"janus_pt {name}, {stream}"] = partial(
                greedy, _reading(model, stream, PRECISIONS[name][0])
            )
    engines |= rivals(model.config, RIVAL_LENGTH, asked.threads)
    speeds: dict[str, dict[int, float]] = {name: {} for name in engines}
    for size in asked.batch_sizes:
        ids = torch.randint(
            5, model.config.vocab_size, (size, RIVAL_LENGTH), generator=generator
        ).tolist()
        jobs = [partial(engine, ids) for engine in engines.values()]
        for name, (seconds, _) in zip(engines, best_times(jobs, 4 * asked.repeats), strict=True):
            speeds[name][size] = size / seconds
    for name, by_size in speeds.items():
        print(f"{name:28}" + "".join(f"{speed:>10.1f}" for speed in by_size.values()))
    return speeds


def _reading(model: JanusModel, ar_stream: str, dtype: torch.dtype) -> JanusModel:
    """The same weights, P_AR read off another slot than they were trained for: good for the clock alone."""
    config = model.config.model_copy(update={"ar_stream": ar_stream})
    copy = JanusTransformer(config)
    copy.load_state_dict(
        {k: v for k, v in model.model.state_dict().items() if not k.startswith(PROJECTION)}
    )
    lay_out_for_cpu(copy.to(dtype))
    return JanusModel(copy, model.tokenizer)


def print_profile(model: JanusModel, name: str, texts: list[str]) -> None:
    """The operators that take most of the time of a way at batch 1."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.generate(texts, batch_size=1, **WAYS[name])
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{name} at batch 1: share of the operators' time")
    for event in events[:10]:
        print(f"  {event.key:45}{event.self_cpu_time_total / total:>7.1%}{event.count:>9} calls")
