"""One table of all ways to decode one trained model, and other engines beside it.

Protocol (Kasai et al. 2020; Helcl et al. 2022; Schmidt et al. 2022): one machine, one run; batch 1,
a middle one and the largest; time of the encoder, of tokenising and of padding counted; decoder
passes stated; sacrebleu and chrF with their signatures. Each batch counts with the median of several
repeats, in which the ways take turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from sacrebleu.metrics import BLEU, CHRF

from janus_pt.benchmark.against import add_against_flags, compare_decoding
from janus_pt.benchmark.case import FIRST_TOKEN
from janus_pt.benchmark.engines import Engine, other_engines
from janus_pt.benchmark.timing import median_times, time_ways
from janus_pt.inference.cpu import lay_out_for_cpu, quantize_int8, stored_state
from janus_pt.inference.janus_model import Generation, JanusModel
from janus_pt.inference.native.layout import lay_out_natively
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import check_equally_long, read_lines, write_json

Quantize = Literal["int8"] | None
WAYS: dict[str, dict[str, Any]] = {
    "AR greedy": {"mode": "ar"},
    "AR beam 5": {"mode": "ar", "num_beams": 5},
    "NAR 1 pass": {"mode": "nar", "iterations": 1},
    "NAR 4 passes": {"mode": "nar", "iterations": 4},
    "NAR 10 passes": {"mode": "nar", "iterations": 10},
    "rerank 4 passes, 5 lengths": {"mode": "rerank", "iterations": 4},
    "speculative": {"mode": "speculative"},
    "speculative, always redraft": {"mode": "speculative", "redraft_at": 1000},
    "auto": {"mode": "auto"},
}
"""Name -> mode and options of `JanusModel.generate`. Greedy search is first: others are compared
with it."""
GREEDY = "AR greedy"


class Precision(NamedTuple):
    """Arguments of `JanusModel.from_pretrained`."""

    dtype: torch.dtype = torch.float32
    quantize: Quantize = None
    native: bool = False


PRECISIONS = {
    "float32": Precision(),
    "bfloat16": Precision(torch.bfloat16),
    "int8": Precision(quantize="int8"),
    "native float32": Precision(native=True),
    "native int8": Precision(quantize="int8", native=True),
}
PROFILED_SENTENCES, PROFILED_OPERATORS = 16, 10
PROFILED_WAYS = (GREEDY, "speculative")
ENGINE_LENGTH = 32
"""Tokens of source and output where engines are compared, as random weights end nowhere."""


@dataclass
class DecodingRow:
    """One way to decode in one precision.

    Attributes:
        passes: mean decoder passes of a sentence.
        acceptance: accepted tokens over drafted ones; 0 where nothing is drafted.
        as_greedy: share of outputs that equal greedy search's in this precision and batch size,
            token for token.
        sentences_per_s, tokens_per_s: by batch size.
    """

    name: str
    precision: str
    bleu: float = 0.0
    chrf: float = 0.0
    passes: float = 0.0
    acceptance: float = 0.0
    as_greedy: float = 0.0
    sentences_per_s: dict[int, float] = field(default_factory=dict)
    tokens_per_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferencedTexts:
    """Texts and metrics; a metric knows its signature once it has scored."""

    sources: list[str]
    references: list[str]
    bleu: BLEU
    chrf: CHRF


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmark.py decode`."""
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument("--input", required=True, help="source text, one sentence a line")
    parser.add_argument("--reference", required=True, help="its translation, line by line")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 16, 64], help="(default: 1 16 64)"
    )
    parser.add_argument(
        "--sentences",
        type=int,
        default=512,
        help="so many from the beginning are timed; quality is of all (default: %(default)s)",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        help="(default: all; native ones take a C++ compiler, and are not compared by --against)",
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print the operators that greedy search and speculative decoding spend time in",
    )
    add_json_flag(parser, "file for all numbers", "--output")
    add_against_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Measure and print, or compare with another checkout.

    Raises:
        UserError: the two files have different numbers of lines.
    """
    if args.precisions is None:
        # Older commits have no native ones.
        args.precisions = [
            name for name in PRECISIONS if not (args.against and PRECISIONS[name].native)
        ]
    if args.against:
        compare_decoding(args)
        return
    sources, references = read_lines(args.input), read_lines(args.reference)
    check_equally_long({args.input: sources, args.reference: references})
    test = ReferencedTexts(sources, references, BLEU(), CHRF())
    torch.set_num_threads(args.threads)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {args.threads} threads, torch {torch.__version__}")
    rows = []
    # One precision after another: ways are compared within one, and two models need not fit.
    for precision in args.precisions:
        rows += measure_precision(precision, test, args)
    print(f"BLEU {test.bleu.get_signature()}\nchrF {test.chrf.get_signature()}")
    print_table(rows, args.batch_sizes)
    # Loaded anew: the last precision's weights may be int8.
    model = JanusModel.from_pretrained(args.model, device="cpu")
    engine_rows = compare_engines(model, args)
    if args.profile:
        for name in PROFILED_WAYS:
            print_profile(model, name, sources[:PROFILED_SENTENCES])
    if args.json:
        ways = [asdict(row) for row in rows]
        engines = {name: asdict(row) for name, row in engine_rows.items()}
        write_json(args.json, {"ways": ways, "engines": engines})


def measure_precision(
    precision: str, test: ReferencedTexts, args: argparse.Namespace
) -> list[DecodingRow]:
    """The rows of one precision."""
    dtype, quantize, native = PRECISIONS[precision]
    model = JanusModel.from_pretrained(args.model, dtype, "cpu", quantize, native)
    rows = [DecodingRow(name, precision) for name in WAYS]
    # Quality in the largest batches, which take the least time.
    measure_quality(model, rows, test, max(args.batch_sizes))
    measure_speed(model, rows, test.sources, args)
    return rows


def measure_quality(
    model: JanusModel, rows: list[DecodingRow], test: ReferencedTexts, batch_size: int
) -> None:
    """Decode everything in every way, greedy search first; scores and counts go into the rows."""
    greedy: list[Generation] = []
    for row in rows:
        outputs = model.generate(test.sources, batch_size=batch_size, **WAYS[row.name])
        # The first row is greedy search's.
        greedy = greedy or outputs
        texts = [output.text for output in outputs]
        row.bleu = test.bleu.corpus_score(texts, [test.references]).score
        row.chrf = test.chrf.corpus_score(texts, [test.references]).score
        row.passes = sum(output.decoder_passes for output in outputs) / len(outputs)
        drafted = sum(output.drafted for output in outputs)
        accepted = sum(output.accepted for output in outputs)
        row.acceptance = accepted / max(1, drafted)
        equal = [ours.tokens == other.tokens for ours, other in zip(outputs, greedy, strict=True)]
        row.as_greedy = sum(equal) / len(outputs)


def measure_speed(
    model: JanusModel, rows: list[DecodingRow], sources: list[str], args: argparse.Namespace
) -> None:
    """Time the ways at every batch size; speeds go into the rows."""
    # Longest first: the sentences of a batch are then about equally long.
    texts = sorted(sources[: args.sentences], key=lambda text: -len(model.encode(text)))
    ways = [partial(model.generate, **WAYS[row.name]) for row in rows]
    rates_of_ways = time_ways(ways, texts, args.batch_sizes, args.repeats)
    for row, rates in zip(rows, rates_of_ways, strict=True):
        row.sentences_per_s = {size: rate.sentences_per_s for size, rate in rates.items()}
        row.tokens_per_s = {size: rate.tokens_per_s for size, rate in rates.items()}


def print_table(rows: Sequence[DecodingRow], batch_sizes: Sequence[int]) -> None:
    """Print all rows; behind each speed its ratio to greedy search's in the same precision."""
    headers = ["", "precision", "BLEU", "chrF", "passes", "accept", "=greedy"]
    for size in batch_sizes:
        headers += [f"batch {size}: sent/s", "(x greedy)", "tok/s"]
    greedy = {row.precision: row for row in rows if row.name == GREEDY}
    lines = []
    for row in rows:
        line = [row.name, row.precision, f"{row.bleu:.1f}", f"{row.chrf:.1f}", f"{row.passes:.1f}"]
        line.append(f"{row.acceptance:.0%}" if row.acceptance else "")
        line.append(f"{row.as_greedy:.1%}")
        for size in batch_sizes:
            ratio = row.sentences_per_s[size] / greedy[row.precision].sentences_per_s[size]
            line.append(f"{row.sentences_per_s[size]:.1f}")
            line.append(f"({ratio:.2f})")
            line.append(f"{row.tokens_per_s[size]:.0f}")
        lines.append(line)
    print(format_table(lines, headers, align="llr"))


@dataclass
class EngineRow:
    """Greedy search of one engine.

    Attributes:
        as_first: share of its outputs that equal the first engine's, token for token, at the largest
            batch size.
        sentences_per_s: by batch size.
    """

    as_first: float = 0.0
    sentences_per_s: dict[int, float] = field(default_factory=dict)


def compare_engines(model: JanusModel, args: argparse.Namespace) -> dict[str, EngineRow]:
    """Time greedy search beside other engines.

    All read and write `ENGINE_LENGTH` tokens. Ours runs with P_AR read from content and from query
    slots; CTranslate2 has our weights, so that its outputs are those from content slots.
    """
    engines: dict[str, Engine] = {}
    for stream in ("content", "query"):
        for name in args.precisions:
            copy = _copy_with_stream(model, stream, PRECISIONS[name])
            engines[f"janus_pt {name}, {stream}"] = partial(_decode_greedily, copy)
    state = {name: weight.float() for name, weight in stored_state(model.model).items()}
    engines |= other_engines(model.config, state, ENGINE_LENGTH, args.threads)
    generator = torch.Generator().manual_seed(1)
    rows = {name: EngineRow() for name in engines}
    for size in args.batch_sizes:
        shape = (size, ENGINE_LENGTH)
        ids = torch.randint(FIRST_TOKEN, model.config.common_vocab_size, shape, generator=generator)
        jobs = [partial(engine, ids.tolist()) for engine in engines.values()]
        # One batch instead of many: more repeats, to be as sure of the time.
        times = median_times(jobs, 4 * args.repeats)
        first = times[0][1]
        for row, (seconds, outputs) in zip(rows.values(), times, strict=True):
            row.sentences_per_s[size] = size / seconds
            equal = [ours == other for ours, other in zip(first, outputs, strict=True)]
            row.as_first = sum(equal) / size
    print_engines(rows, args.batch_sizes)
    return rows


def print_engines(rows: Mapping[str, EngineRow], batch_sizes: Sequence[int]) -> None:
    """Print the engines' speeds."""
    print(f"\ngreedy search, {ENGINE_LENGTH} tokens in and out, sentences/s, medians")
    headers = ["", *(f"batch {size}" for size in batch_sizes), "=first"]
    lines = []
    for name, row in rows.items():
        speeds = [f"{rate:.1f}" for rate in row.sentences_per_s.values()]
        lines.append([name, *speeds, f"{row.as_first:.0%}"])
    print(format_table(lines, headers, align="lr"))


def _decode_greedily(model: JanusModel, ids: list[list[int]]) -> list[list[int]]:
    outputs = model.generate(
        ids, "ar", batch_size=len(ids), min_length=ENGINE_LENGTH, max_length=ENGINE_LENGTH
    )
    return [output.tokens for output in outputs]


def _copy_with_stream(model: JanusModel, ar_stream: str, precision: Precision) -> JanusModel:
    """The same weights with P_AR read from other slots than in training.

    Its outputs are worth nothing; it is only timed.
    """
    config = model.config.model_copy(update={"ar_stream": ar_stream})
    copy = JanusTransformer(config)
    copy.load_state_dict(stored_state(model.model))
    if precision.native:
        lay_out_natively(copy, int8=precision.quantize is not None)
    elif precision.quantize:
        quantize_int8(copy)
    else:
        lay_out_for_cpu(copy.to(precision.dtype))
    return JanusModel(copy, model.tokenizer)


def print_profile(model: JanusModel, name: str, texts: list[str]) -> None:
    """Print the operators that take most of the time of a way at batch 1."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.generate(texts, batch_size=1, **WAYS[name])
    # Self time: an operator's share without the operators it calls.
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{name} at batch 1: share of the operators' time")
    rows = []
    for event in events[:PROFILED_OPERATORS]:
        share = event.self_cpu_time_total / total
        rows.append([event.key, f"{share:.1%}", f"{event.count} calls"])
    print(format_table(rows, align="lr"))
