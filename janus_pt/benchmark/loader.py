"""`launchers/benchmark.py loader`: reading shards, making noise and building batches, by worker processes, untrained.

Without a configuration it reads shards of random tokens in blocks of the shape's length, written for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from janus_pt.benchmark.case import SEED, shape_case
from janus_pt.benchmark.train import add_case
from janus_pt.config.reader import read_config
from janus_pt.config.schema import CorpusConfig, DataConfig, ModelConfig, ObjectiveConfig
from janus_pt.data.loader import TrainLoader
from janus_pt.data.manifest import Manifest, Tokenizer
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch

SHARDS, BLOCKS = 4, 2000
MICRO_BATCH_TOKENS = 8192
SHARES_OF = 100
"""Micro-batches of which is told how much of them is padding."""


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py loader", description=__doc__.partition("\n\n")[0]
    )
    add_case(parser)
    parser.add_argument("--workers", type=int, default=1, help="processes that build; 0: this one")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if asked.config:
            config = read_config(asked.config)
            model, objective, data = config.model, config.objective, config.data
        else:
            model = shape_case(asked.shape, asked.ar_stream or "query").model
            objective, length = ObjectiveConfig.model_validate({}), 512
            write_shards(Path(folder), length - 2, model.vocab_size)
            corpora = (CorpusConfig(path=folder),)
            data = DataConfig(
                train=corpora,
                global_batch_size=MICRO_BATCH_TOKENS,
                micro_batch_size=MICRO_BATCH_TOKENS,
            )
        found = measure(
            model, objective, data.model_copy(update={"num_workers": asked.workers}), asked.seconds
        )
    for key, value in found.items():
        print(f"{key:24}{value:>14,.4g}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n")


def measure(
    model: ModelConfig, objective: ObjectiveConfig, data: DataConfig, seconds: float
) -> dict[str, float]:
    """Speed after the first batches, which wait for the workers to start; and how much of the batches is no padding."""
    prepare = partial(make_example, model=model, objective=objective)
    loader: TrainLoader[Any, Batch] = TrainLoader(
        data, prepare, partial(collate_examples, objective=objective),
        seed=SEED, max_length=model.max_positions, micro_batches_per_step=1, rank=0, ranks=1,
    )  # fmt: skip
    steps: Iterator[list[Batch]] = iter(loader)
    for _ in range(2 * (1 + data.num_workers)):
        next(steps)
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        tokens += sum(int(batch.lengths.sum()) for batch in next(steps))
    spent = time.perf_counter() - started
    shares = np.zeros((3, 2))
    for batch in chain.from_iterable(islice(steps, SHARES_OF)):
        slots, source = batch.slots.samples >= 0, batch.source.samples >= 0
        shares += (
            (int(slots.sum()), slots.numel()),
            (int(source.sum()), source.numel()),
            scores(batch),
        )
    names = ("real_slots", "real_source_tokens", "real_scores")
    return {
        "tokens_per_s": tokens / spent,
        "tokens_per_s_per_worker": tokens / spent / max(1, data.num_workers),
        **dict(zip(names, (shares[:, 0] / shares[:, 1]).tolist(), strict=True)),
    }


def scores(batch: Batch) -> tuple[int, int]:
    """Pairs of a slot or source token and what it attends to, which a device without block masks computes in a layer of
    the encoder and one of the decoder: those of a sample, and all, with those that only fill the grids."""
    slots, source = batch.slots, batch.source.layout
    assert source is not None
    sides = [*zip(slots.query_layout.indices, slots.key_layout.indices, strict=True)]
    pairs = [
        *sides,
        *((readers, source.indices[0]) for readers in slots.query_layout.indices),
        (source.indices[0], source.indices[0]),
    ]
    real = sum(int(((r >= 0).sum(1) * (k >= 0).sum(1)).sum()) for r, k in pairs)
    return real, sum(r.numel() * k.shape[1] for r, k in pairs)


def write_shards(folder: Path, length: int, vocab_size: int) -> None:
    """A corpus of random tokens in blocks of `length`."""
    from data_prep.writer import ShardFile  # the corpus tools, which reading does without

    rng, shards = np.random.default_rng(SEED), []
    for number in range(SHARDS):
        file = ShardFile(folder, number, ("text",))
        for block in range(BLOCKS):
            file.write(
                number * BLOCKS + block, (rng.integers(5, vocab_size, length).astype(np.uint16),)
            )
        shards.append(file.close())
    tokenizer = Tokenizer(file="tokenizer.model", sha256="0" * 64, vocab_size=vocab_size)
    Manifest(
        fields=("text",), dtype="uint16", samples=SHARDS * BLOCKS, tokens={"text": SHARDS * BLOCKS * length},
        max_tokens=length, tokenizer=tokenizer, sources=(), skipped=0, shards=tuple(shards),
    ).write(folder)  # fmt: skip
