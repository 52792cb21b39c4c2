"""The state of a training run on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.checkpoint.async_save import AsyncCheckpointer
from janus_pt.checkpoint.layout import job_layout
from janus_pt.checkpoint.store import CHECKPOINTS
from janus_pt.config.exported import read_export_config
from janus_pt.config.schema import Config
from janus_pt.data.loader import TrainLoader
from janus_pt.objectives.loss import ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.parallel.engine import Engine, EngineModule
from janus_pt.parallel.parameter_groups import trains_all
from janus_pt.train.counts import Counts
from janus_pt.train.fingerprint import fingerprint
from janus_pt.train.report.phases import Phases
from janus_pt.train.validation import Decoding
from janus_pt.train.watch.divergence import DivergenceMonitor


@dataclass
class Run:
    """One training run on this rank."""

    config: Config
    engine: Engine
    loader: TrainLoader[Any, Batch]
    saver: AsyncCheckpointer
    numbers: DivergenceMonitor
    phases: Phases
    """Times of the steps since the last report."""
    counts: Counts
    """What the run has trained on so far, over the whole job."""
    decoding: Decoding | None = None
    step: int = 0
    """Steps done."""
    validated: dict[str, float] = field(default_factory=dict)
    """Step, loss and metrics of the last validation."""
    best: list[dict[str, float]] = field(default_factory=list)
    """The best validations that have a checkpoint, the best first."""

    @property
    def module(self) -> EngineModule:
        """The model with its loss, or this rank's stage of it."""
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
        """The folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    def fingerprint(self) -> float:
        """A number that differs from other models' (`fingerprint.py`); all ranks take part."""
        return fingerprint(self.engine, self.loader.corpora[0].manifest.fields)

    def frozen_from(self) -> str | None:
        """Hash of the weights of `run.init_from`, where some of them stay frozen.

        A checkpoint has only trained weights, so it must name the model that has the others.
        """
        config = self.config
        if config.run.init_from is None or trains_all(config.optimizer, config.adapter):
            return None
        return read_export_config(config.run.init_from).model_sha256

    def state(self) -> dict[str, Any]:
        """Everything in a checkpoint besides DeepSpeed's files, in JSON's types; all ranks take part."""
        return {
            "step": self.step,
            "best": self.best,
            "counts": self.counts.values.tolist(),
            "layout": job_layout(self.config.parallel, dist.get_world_size()),
            # On every rank the same: a position in the global stream of samples.
            "loader": self.loader.state_dict(),
            # Compared after loading: the same number on whatever layout.
            "fingerprint": self.fingerprint(),
            "frozen_from": self.frozen_from(),
            # The number of skipped steps, and how many of them were the last ones in a row.
            "left_out": [self.numbers.skipped, self.numbers.skipped_in_a_row],
        }
