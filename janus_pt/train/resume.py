"""Going on from a checkpoint: find it, check that it is this run's, load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.checkpoint import store as checkpoint
from janus_pt.checkpoint.layout import job_layout
from janus_pt.checkpoint.restore import load
from janus_pt.config.parallel_schema import PrecisionConfig
from janus_pt.config.schema import AdapterConfig, Config, ModelConfig, OptimizerConfig
from janus_pt.parallel.consistency import check_identical, parameter_fingerprints
from janus_pt.train.counts import Counts
from janus_pt.train.fingerprint import check_fingerprint
from janus_pt.train.state import Run
from janus_pt.utils.errors import UserError


def restore(run: Run, before_step: int | None = None) -> None:
    """Bring the run to the state of its last whole checkpoint, if it has one; all ranks take part.

    Args:
        before_step: only checkpoints of earlier steps count.

    Raises:
        UserError: no checkpoint is whole, or the one that is belongs to another run.
    """
    config = run.config
    quick = config.checkpoint.verify == "quick"
    path = checkpoint.find(run.checkpoints, quick, before_step)
    if path is None:
        return
    # Before DeepSpeed reads it: its own errors about another model's files say nothing to a user.
    _check_same_run(run, path)
    state = load(run.engine, path, job_layout(config.parallel, dist.get_world_size()))
    # With ZeRO-3 no rank has whole parameters between steps.
    if config.parallel.zero_stage < 3:
        check_identical(*parameter_fingerprints(run.module.model))
    saved = state["fingerprint"]
    check_fingerprint(saved, run.fingerprint(), config.precision.dtype, str(path))
    run.loader.load_state_dict(state["loader"])
    run.step = state["step"]
    run.best = checkpoint.best_of(state)
    run.numbers.skipped, run.numbers.skipped_in_a_row = state["left_out"]
    run.counts = Counts(run.counts.values.new_tensor(state["counts"]))


def _check_same_run(run: Run, folder: Path) -> None:
    """Refuse a checkpoint of another model, or of other frozen weights."""
    theirs = Config.model_validate_json((folder / "config.json").read_text())
    ours = run.config
    saved = _fixed_settings(theirs.model, theirs.precision, theirs.adapter, theirs.optimizer)
    current = _fixed_settings(ours.model, ours.precision, ours.adapter, ours.optimizer)
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
    if frozen != run.frozen_from():
        raise UserError(
            f"run.init_from: {run.config.run.init_from} is not the model that {folder} started from"
        )


def _fixed_settings(
    model: ModelConfig,
    precision: PrecisionConfig,
    adapter: AdapterConfig | None,
    optimizer: OptimizerConfig,
) -> dict[str, Any]:
    """Settings that cannot change in the life of a run, by dotted key."""
    settings: dict[str, Any] = {f"model.{key}": value for key, value in model}
    settings |= {f"precision.{key}": value for key, value in precision}
    if adapter is not None:
        settings |= {f"adapter.{key}": value for key, value in adapter}
    # The optimizer's groups, and so its state, depend on these two.
    settings["optimizer.freeze"] = optimizer.freeze
    settings["optimizer.layer_lr_decay"] = optimizer.layer_lr_decay
    return settings
