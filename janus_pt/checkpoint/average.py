"""The model of a checkpoint, or the mean of several, as an export. Not for several ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from janus_pt.checkpoint import universal
from janus_pt.checkpoint.store import CHECKPOINTS, STATE, best_of, convert, steps_in
from janus_pt.config.schema import Config
from janus_pt.data.corpus import tokenizer_files
from janus_pt.export.write_run import write_model
from janus_pt.utils.errors import UserError


def export(checkpoints: Sequence[Path], target: Path, tokenizers: Sequence[Path] = ()) -> Path:
    """Export the mean of the checkpoints' weights, of adapters if these are trained; `target` is returned.

    One parameter of each checkpoint is in memory at a time.

    Args:
        tokenizers: as `save_export` takes them; default: those of the corpus the run was trained on.

    Raises:
        UserError: a checkpoint is damaged or cannot be converted, they are not of the same model, or the tokenizer is
            not there.
    """
    whole = [convert(checkpoint) for checkpoint in checkpoints]
    first, *others = (_kind(checkpoint) for checkpoint in checkpoints)
    for checkpoint, other in zip(checkpoints[1:], others, strict=True):
        if other != first:
            raise UserError(
                f"{checkpoint}: of another model than {checkpoints[0]}; average those of one run"
            )
    config = _config(checkpoints[0])
    weights = mean_of(
        [
            universal.weights(folder, config.model, config.optimizer, config.adapter)
            for folder in whole
        ]
    )
    return write_model(target, weights, config, tokenizers or tokenizer_files(config.data))


def mean_of(models: Sequence[Iterable[tuple[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """The mean of each weight, float32, over models that give theirs by name in the same order."""
    for same in zip(*models, strict=True):
        (name, first), *others = same
        total = first.double()
        for _, weight in others:
            total += weight
        yield name, (total / len(same)).float()


def select_checkpoints(
    folders: Sequence[Path], last: int | None = None, best: int | None = None
) -> Sequence[Path]:
    """The checkpoints in `folders`; with `last` or `best` so many of the one run that is there.

    The best are those that the newest checkpoint names.

    Raises:
        UserError: there are not so many.
    """
    if last is None and best is None:
        return folders
    if len(folders) != 1:
        raise UserError(
            f"--last and --best choose from one run, but {len(folders)} folders are given"
        )
    checkpoints = folders[0] / CHECKPOINTS
    steps = steps_in(checkpoints)[::-1]
    if best is not None and steps:
        steps = [int(found["step"]) for found in best_of(_state(checkpoints / f"step_{steps[0]}"))]
    wanted, key = (last, "keep_last") if best is None else (best, "keep_best")
    found = [path for step in steps if (path := checkpoints / f"step_{step}").is_dir()]
    if not wanted or not 0 < wanted <= len(found):
        raise UserError(
            f"{checkpoints}: {wanted} checkpoints are asked for, there are {len(found)} to choose from; "
            f"checkpoint.{key} says how many a run keeps"
        )
    return found[:wanted]


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError):
        raise UserError(
            f"{checkpoint}: {STATE} is missing or broken, the checkpoint is incomplete"
        ) from None


def _config(checkpoint: Path) -> Config:
    return Config.model_validate_json((checkpoint / "config.json").read_text())


def _kind(checkpoint: Path) -> tuple[Any, ...]:
    """What is the same in checkpoints that can be averaged."""
    config = _config(checkpoint)
    return (
        config.model,
        config.adapter,
        config.optimizer.freeze,
        _state(checkpoint).get("frozen_from"),
    )
