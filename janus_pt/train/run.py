"""What a training run consists of, put together and checked before the first step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.checkpoint import store as checkpoint
from janus_pt.checkpoint.async_save import AsyncCheckpointer
from janus_pt.checkpoint.layout import layout
from janus_pt.config.reader import to_json
from janus_pt.config.schema import Config
from janus_pt.data.corpus import Corpus, open_corpus
from janus_pt.data.loader import TrainLoader
from janus_pt.export.folder import load_export, read_export_config
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.loss import ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.parallel import groups
from janus_pt.parallel.consistency import check_identical, code_fingerprint, parameter_fingerprints
from janus_pt.parallel.engine import Module, build_engine, build_module
from janus_pt.parallel.parameter_groups import trains_all
from janus_pt.train.dry_run import dry_step
from janus_pt.train.fingerprint import check_fingerprint, fingerprint
from janus_pt.train.step import SIZES
from janus_pt.train.validation import Decoding, open_decoding
from janus_pt.train.watch.divergence import DivergenceMonitor
from janus_pt.train.watch.heartbeat import Heartbeat
from janus_pt.utils.errors import UserError

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in the run folder."""


@dataclass
class Run:
    """One training run on this rank.

    `counts` is what has been trained on so far, over the whole job; `validated` and `best` are step, loss and metrics
    of the last validation, and of the best ones that have a checkpoint, the best first.
    """

    config: Config
    engine: Any
    loader: TrainLoader[Any, Batch]
    saver: AsyncCheckpointer
    numbers: DivergenceMonitor
    counts: Tensor
    decoding: Decoding | None = None
    step: int = 0
    validated: dict[str, float] = field(default_factory=dict)
    best: list[dict[str, float]] = field(default_factory=list)

    @property
    def module(self) -> Module:
        """The module inside the engine: the model, or this rank's stage of it, and the objective's loss."""
        return self.engine.module

    @property
    def loss(self) -> ObjectiveLoss:
        """The objective's loss."""
        return self.engine.module.loss

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run.output_dir)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.folder / CHECKPOINTS

    def fingerprint(self) -> float:
        """What tells this model from another; all ranks take part."""
        return fingerprint(self.config, self.engine, self.loader.corpora[0].manifest.fields)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides DeepSpeed's files; JSON types only. All ranks take part."""
        return {
            "step": self.step,
            "best": self.best,
            "counts": self.counts.tolist(),
            "layout": layout(self.config, dist.get_world_size()),
            "loader": self.loader.state_dict(),
            "fingerprint": self.fingerprint(),
            "frozen_from": frozen_from(self.config),
            "left_out": [self.numbers.left_out, self.numbers.in_a_row],
        }


def prepare(config: Config, resume: bool, peers: Heartbeat, before_step: int | None = None) -> Run:
    """Open the data, build the model, start the engine, go on from a checkpoint; all ranks take part.

    `peers` begins to watch as soon as the ranks can reach each other. With `before_step` the run goes on from a
    checkpoint of an earlier step than that, or from the start.

    Raises:
        UserError: config, corpus, weights and checkpoint do not fit together.
    """
    sizes = config.parallel.tensor_parallel_size, config.parallel.pipeline_parallel_size
    timeout = config.run.peer_timeout
    device = groups.initialize(
        *sizes, before_division=partial(check_same_start, config), timeout_s=timeout
    )
    peers.start()
    check_folder(config, resume)
    corpora = check_corpora(config)
    decoding = open_decoding(config)
    loader = build_loader(config)
    check_identical({"the corpus of data.train": loader.fingerprint})
    module = build_module(
        config, initial_weights(config) if config.run.init_from is not None else None
    )
    check_identical(parameter_fingerprints(module.model))
    engine = build_engine(config, module)
    dry_step(config, engine, corpora)
    counts = torch.zeros(len(module.loss.names) + len(SIZES), dtype=torch.float64, device=device)
    saver = AsyncCheckpointer(
        Path(config.run.output_dir) / CHECKPOINTS, config.checkpoint.keep_last
    )
    numbers = DivergenceMonitor(Path(config.run.output_dir), loader, config.run.max_left_out)
    run = Run(config, engine, loader, saver, numbers, counts, decoding)
    if resume:
        _restore(run, before_step)
    return run


def check_same_start(config: Config) -> None:
    """Refuse ranks that were started with another configuration or another version of this code."""
    check_identical(
        {"the configuration": to_json(config), "the code of janus_pt": code_fingerprint()}
    )


def build_loader(config: Config) -> TrainLoader[Any, Batch]:
    """The training data of this rank."""
    return TrainLoader(
        config.data,
        **example_functions(config),
        seed=config.run.seed,
        max_length=config.model.max_positions,
        micro_batches_per_step=config.micro_batches_per_step,
        rank=parallel_state.get_data_parallel_rank(),
        ranks=parallel_state.get_data_parallel_world_size(),
    )


def example_functions(config: Config) -> dict[str, Any]:
    """`prepare` and `collate` for the loaders, picklable."""
    return {
        "prepare": partial(make_example, model=config.model, objective=config.objective),
        "collate": partial(collate_examples, objective=config.objective),
    }


def check_folder(config: Config, resume: bool) -> None:
    """Refuse to write over another run."""
    folder = Path(config.run.output_dir)
    if not resume and (folder / CHECKPOINTS / checkpoint.LATEST).exists():
        raise UserError(
            f"{folder} holds a run already: go on with --resume auto, or give another run.output_dir"
        )


def check_corpora(config: Config) -> list[Corpus]:
    """The corpora of `data`, refused if they do not fit the model, the objective or each other."""
    paths = [corpus.path for corpus in config.data.train] + (
        [config.data.valid] if config.data.valid else []
    )
    corpora = [open_corpus(path, config.data.cache_dir) for path in paths]
    problems = []
    for path, corpus in zip(paths, corpora, strict=True):
        problems += [f"{path}: {problem}" for problem in _corpus_problems(config, corpus)]
        if corpus.manifest.tokenizer_hashes != corpora[0].manifest.tokenizer_hashes:
            problems.append(
                f"{path}: was made with another tokenizer than {paths[0]}; rebuild one of them"
            )
    if problems:
        raise UserError("\n  ".join(["the corpora do not fit the configuration:", *problems]))
    return corpora


def _corpus_problems(config: Config, corpus: Corpus) -> list[str]:
    problems = []
    of_sources = corpus.manifest.source_tokenizer
    for name, size in (
        ("vocab_size", corpus.manifest.tokenizer.vocab_size),
        ("source_vocab_size", of_sources.vocab_size if of_sources else None),
    ):
        ours = getattr(config.model, name)
        if ours != size:
            problems.append(
                f"model.{name} is {ours}, its tokenizers have {size or 'none'}; set it to {size or 'null'}"
            )
    parallel, infilled = (
        "target" in corpus.manifest.fields,
        config.objective.masking.kind == "infill",
    )
    if not parallel and not infilled:
        problems.append('has no target side, so objective.masking.kind must be "infill"')
    if parallel and infilled:
        problems.append(
            'has source and target, objective.masking.kind "infill" makes the source from a text; use "span"'
        )
    return problems


def initial_weights(config: Config) -> dict[str, Tensor]:
    """The weights of `run.init_from`, refused if shape or tokenizer are not this run's."""
    assert config.run.init_from is not None
    export = load_export(config.run.init_from)
    theirs, ours = export.config.model_dump(), config.model.model_dump()
    changed = [
        f"model.{key} (there {theirs[key]}, here {ours[key]})"
        for key in ours
        if theirs[key] != ours[key]
    ]
    changed = [change for change in changed if "dropout" not in change]
    if [tokenizer.fingerprint for tokenizer in export.tokenizers] != open_corpus(
        config.data.train[0].path, config.data.cache_dir
    ).manifest.tokenizer_hashes:
        changed.append(f"the tokenizer (that of {config.data.train[0].path} is another one)")
    if changed:
        raise UserError(
            f"run.init_from: the model in {config.run.init_from} differs in {', '.join(changed)}"
        )
    return export.state


def frozen_from(config: Config) -> str | None:
    """Hash of the weights of `run.init_from` if some stay as they are there: they are in no checkpoint."""
    if trains_all(config) or config.run.init_from is None:
        return None
    return read_export_config(config.run.init_from).model_sha256


def _restore(run: Run, before_step: int | None) -> None:
    path = checkpoint.find(run.checkpoints, run.config.checkpoint.verify == "quick", before_step)
    if path is None:
        return
    _check_same_run(run, path)
    state = checkpoint.load(run.engine, path, layout(run.config, dist.get_world_size()))
    if run.config.parallel.zero_stage < 3:
        check_identical(parameter_fingerprints(run.module.model))
    check_fingerprint(
        state["fingerprint"], run.fingerprint(), run.config.precision.dtype, str(path)
    )
    run.loader.load_state_dict(state["loader"])
    run.step, run.best = state["step"], checkpoint.best_of(state)
    run.numbers.left_out, run.numbers.in_a_row = state["left_out"]
    run.counts += torch.tensor(state["counts"], dtype=run.counts.dtype, device=run.counts.device)


def _check_same_run(run: Run, folder: Path) -> None:
    """Refuse a checkpoint of another model before DeepSpeed reads it."""
    saved = _fixed(Config.model_validate_json((folder / "config.json").read_text()))
    current = _fixed(run.config)
    changed = [
        f"{key} (was {saved.get(key)}, is {current.get(key)})"
        for key in {**saved, **current}
        if saved.get(key) != current.get(key)
    ]
    if changed:
        raise UserError(
            f"{folder} was written with another configuration: {', '.join(changed)}; restore that"
        )
    frozen = json.loads((folder / checkpoint.STATE).read_text()).get("frozen_from")
    if frozen != frozen_from(run.config):
        raise UserError(
            f"run.init_from: {run.config.run.init_from} is not the model that {folder} started from"
        )


def _fixed(config: Config) -> dict[str, Any]:
    """What cannot change in the life of a run, by dotted key."""
    sections = {name: getattr(config, name) for name in ("model", "precision", "adapter")}
    values = {
        f"{name}.{key}": value
        for name, section in sections.items()
        if section
        for key, value in section
    }
    return values | {
        f"optimizer.{key}": getattr(config.optimizer, key) for key in ("freeze", "layer_lr_decay")
    }
