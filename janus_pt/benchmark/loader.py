"""Reading shards, making noise and building batches by worker processes, without training.

Without a configuration it reads shards of random tokens in blocks of the shape's length, which are
written for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from janus_pt.benchmark.case import SEED, shape_case
from janus_pt.benchmark.timing import print_numbers
from janus_pt.benchmark.train import add_case_arguments
from janus_pt.checks import read_config
from janus_pt.config.schema import CorpusConfig, DataConfig, ModelConfig, ObjectiveConfig
from janus_pt.data.loader import TrainLoader
from janus_pt.data.manifest import Manifest, TokenizerEntry
from janus_pt.data_prep.writer import ShardFile
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch
from janus_pt.planning.plan import require_micro_batch
from janus_pt.utils.text_files import write_json

SHARDS, BLOCKS_A_SHARD = 4, 2000
BLOCK_TOKENS = 512
"""Tokens of a block, with bos and eos."""
MICRO_BATCH_TOKENS = 8192
PADDING_BATCHES = 100
"""Micro-batches whose share of padding is counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmark.py loader`."""
    add_case_arguments(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that build batches; 0: this one (default: %(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        if args.config:
            config = read_config(args.config)
            require_micro_batch(config.data)
            model, objective, data = config.model, config.objective, config.data
        else:
            model = shape_case(args.shape, args.ar_stream or "query").model
            objective = ObjectiveConfig.model_validate({})
            data = _random_data(Path(folder), model.vocab_size)
        data = data.model_copy(update={"num_workers": args.workers})
        numbers = measure(model, objective, data, args.seconds)
    print_numbers(numbers)
    if args.json:
        write_json(args.json, numbers)


def _random_data(folder: Path, vocab_size: int) -> DataConfig:
    """A corpus of random tokens in `folder`, and the section that reads it."""
    # bos and eos are added when a sample is read.
    write_shards(folder, BLOCK_TOKENS - 2, vocab_size)
    return DataConfig(
        train=(CorpusConfig(path=str(folder)),),
        global_batch_size=MICRO_BATCH_TOKENS,
        micro_batch_size=MICRO_BATCH_TOKENS,
    )


def measure(
    model: ModelConfig, objective: ObjectiveConfig, data: DataConfig, seconds: float
) -> dict[str, float]:
    """Speed of building batches, and the share of them that is not padding."""
    loader: TrainLoader[Any, Batch] = TrainLoader(
        data,
        partial(make_example, model=model, objective=objective),
        partial(collate_examples, objective=objective),
        seed=SEED,
        max_length=model.longest_sample,
        micro_batches_per_step=1,
        rank=0,
        ranks=1,
    )
    steps: Iterator[list[Batch]] = iter(loader)
    # The first batches wait for the workers to start, and their queues to fill.
    for _ in range(2 * (1 + data.num_workers)):
        next(steps)
    tokens = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        tokens += sum(int(batch.lengths.sum()) for batch in next(steps))
    tokens_per_s = tokens / (time.perf_counter() - started)
    batches = chain.from_iterable(islice(steps, PADDING_BATCHES))
    return {
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_worker": tokens_per_s / max(1, data.num_workers),
        **real_shares(batches),
    }


def real_shares(batches: Iterator[Batch]) -> dict[str, float]:
    """Shares of slots, source tokens and attention scores that are not padding."""
    names = ("real_slots", "real_source_tokens", "real_scores")
    real = np.zeros(len(names))
    total = np.zeros(len(names))
    for batch in batches:
        is_slot = batch.slots.samples >= 0
        is_source_token = batch.source.samples >= 0
        real_scores, all_scores = count_scores(batch)
        real += (int(is_slot.sum()), int(is_source_token.sum()), real_scores)
        total += (is_slot.numel(), is_source_token.numel(), all_scores)
    return dict(zip(names, (real / total).tolist(), strict=True))


def count_scores(batch: Batch) -> tuple[int, int]:
    """Scores that attention computes in a layer of the encoder and one of the decoder.

    Counted for a device without block masks, which attends over samples side by side.

    Returns:
        Scores between slots and source tokens of a sample, and all scores, padding's included.
    """
    slots, source = batch.slots, batch.source.layout
    # Only batches for devices with block masks have no such layout.
    assert source is not None
    source_indices = source.indices[0]
    # (queries, keys) of self-attention in the decoder, cross-attention, and the encoder.
    pairs: list[tuple[Tensor, Tensor]] = []
    pairs += zip(slots.query_layout.indices, slots.key_layout.indices, strict=True)
    pairs += [(queries, source_indices) for queries in slots.query_layout.indices]
    pairs.append((source_indices, source_indices))
    real = 0
    computed = 0
    for queries, keys in pairs:
        # Each row is a sample; padding has index -1.
        queries_of_sample = (queries >= 0).sum(1)
        keys_of_sample = (keys >= 0).sum(1)
        real += int((queries_of_sample * keys_of_sample).sum())
        computed += queries.numel() * keys.shape[1]
    return real, computed


def write_shards(folder: Path, length: int, vocab_size: int) -> None:
    """Write a corpus of random tokens in blocks of `length`."""
    rng = np.random.default_rng(SEED)
    shards = []
    for shard in range(SHARDS):
        file = ShardFile(folder, shard, ("text",))
        for block in range(BLOCKS_A_SHARD):
            tokens = rng.integers(5, vocab_size, length).astype(np.uint16)
            file.write(shard * BLOCKS_A_SHARD + block, (tokens,))
        shards.append(file.close())
    blocks = SHARDS * BLOCKS_A_SHARD
    manifest = Manifest(
        fields=("text",),
        dtype="uint16",
        samples=blocks,
        tokens={"text": blocks * length},
        max_tokens=length,
        # Nothing is decoded: the corpus needs no tokenizer, but a manifest names one.
        tokenizer=TokenizerEntry(file="tokenizer.model", sha256="0" * 64, vocab_size=vocab_size),
        sources=(),
        skipped=0,
        shards=tuple(shards),
    )
    manifest.write(folder)
