"""Preparing a run, in order: groups, checks, data, engine, dry step, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.checkpoint.async_save import AsyncCheckpointer
from janus_pt.checkpoint.store import CHECKPOINTS
from janus_pt.config.reader import to_json
from janus_pt.config.run_schema import RunConfig
from janus_pt.config.schema import AUTO, Config, DataConfig, ModelConfig, ObjectiveConfig
from janus_pt.data.corpus import Corpus
from janus_pt.data.loader import TrainLoader
from janus_pt.data.workers import Collate, Prepare
from janus_pt.model.masks import uses_block_masks
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch
from janus_pt.parallel import groups
from janus_pt.parallel.assemble import assemble
from janus_pt.parallel.consistency import check_identical
from janus_pt.parallel.engine import Engine
from janus_pt.train.counts import Counts
from janus_pt.train.dry_run import dry_step, longest_sample
from janus_pt.train.micro_batch import build_largest, resolve_micro_batch
from janus_pt.train.preflight import (
    check_corpora,
    check_folder,
    check_same_start,
    initial_weights,
)
from janus_pt.train.report.phases import Phases
from janus_pt.train.resume import restore
from janus_pt.train.state import Run
from janus_pt.train.validation import open_decoding
from janus_pt.train.watch.divergence import DivergenceMonitor
from janus_pt.train.watch.heartbeat import Heartbeat


def prepare(
    config: Config,
    resume: bool,
    heartbeat: Heartbeat,
    when_joined: Callable[[], None] = lambda: None,
    before_step: int | None = None,
) -> Run:
    """Open the data, build the model, start the engine, go on from a checkpoint; all ranks take part.

    Args:
        heartbeat: is started as soon as the ranks can reach each other.
        when_joined: is called when the process groups exist, before the model is built.
        before_step: go on from a checkpoint of an earlier step than this, or from the start.

    Raises:
        UserError: configuration, corpora, weights and checkpoint do not fit together.
    """
    model = config.model
    folder = Path(config.run.output_dir)

    device = _join(config, heartbeat)
    when_joined()

    # Cheap checks come before expensive ones: a user's mistake is reported within seconds.
    check_folder(folder, resume)
    corpora = check_corpora(config.data, model, config.objective)
    decoding = open_decoding(config.validation, config.data, model.longest_text)

    longest = longest_sample(corpora, model)
    is_auto = config.data.micro_batch_size == AUTO
    if is_auto:
        config = resolve_micro_batch(config, longest, resume)
    data = config.data
    loader = train_loader(data, model, config.objective, config.run)
    check_identical({"the corpus of data.train": loader.fingerprint})

    weights = None
    if config.run.init_from is not None:
        hashes = corpora[0].manifest.tokenizer_hashes
        weights = initial_weights(config.run.init_from, model, data.train[0].path, hashes)

    build = partial(_build, corpora=corpora, weights=weights)
    if is_auto and not resume:
        config, engine = build_largest(config, longest, build)
    else:
        engine = build(config)
    if config.data != data:
        loader = train_loader(config.data, model, config.objective, config.run)

    run = Run(
        config,
        engine,
        loader,
        saver=AsyncCheckpointer(folder / CHECKPOINTS, config.checkpoint.keep_last),
        numbers=DivergenceMonitor(folder, loader, config.run.max_left_out),
        phases=Phases(device),
        counts=Counts.zeros(len(engine.module.loss.names), device),
        decoding=decoding,
    )
    if resume:
        restore(run, before_step)
    return run


def _join(config: Config, heartbeat: Heartbeat) -> torch.device:
    """Meet the other ranks, and watch them; returns this rank's device."""
    # Ranks must have started with the same files before anything else: they divide into groups by
    # their own configuration, and groups that do not match hang.
    device = groups.initialize(
        config.parallel.tensor_parallel_size,
        config.parallel.pipeline_parallel_size,
        before_division=partial(check_same_start, to_json(config)),
        timeout_s=config.run.peer_timeout,
    )
    groups.set_float32_products(config.precision)
    # From here on a rank that ends or hangs is noticed by the others.
    heartbeat.start()
    return device


def _build(
    config: Config, corpora: Sequence[Corpus], weights: Mapping[str, Tensor] | None
) -> Engine:
    """The engine, which has made its first step."""
    engine = assemble(config, weights)
    # Before a checkpoint is loaded: it needs an optimizer that has a state, which the first update
    # makes; and if memory is short, no time is lost.
    dry_step(engine, config.data, corpora, config.run.cuda_graphs)
    return engine


class ExampleFunctions(TypedDict):
    """How a loader's worker processes make batches; picklable."""

    prepare: Prepare[Any]
    collate: Collate[Any, Batch]


def example_functions(
    model: ModelConfig, objective: ObjectiveConfig, for_graphs: bool = False
) -> ExampleFunctions:
    """The functions that make examples and batches for the objective; see `collate_examples`."""
    uses_blocks = uses_block_masks(groups.device(), model.attention_dropout, model.head_size)
    blocks_for = model if uses_blocks else None
    return {
        "prepare": partial(make_example, model=model, objective=objective),
        "collate": partial(
            collate_examples, objective=objective, blocks_for=blocks_for, for_graphs=for_graphs
        ),
    }


def train_loader(
    data: DataConfig, model: ModelConfig, objective: ObjectiveConfig, run: RunConfig
) -> TrainLoader[Any, Batch]:
    """The training data of this rank. Ranks of one copy of the model read the same batches."""
    return TrainLoader(
        data,
        **example_functions(model, objective, run.cuda_graphs),
        seed=run.seed,
        max_length=model.longest_sample,
        micro_batches_per_step=data.micro_batches_per_step,
        rank=parallel_state.get_data_parallel_rank(),
        ranks=parallel_state.get_data_parallel_world_size(),
    )
