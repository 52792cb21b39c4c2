"""The model of a checkpoint, or the mean of several, as an export. Not for several ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from janus_pt.checkpoint import universal
from janus_pt.checkpoint.restore import convert
from janus_pt.checkpoint.store import CHECKPOINTS, STATE, best_of, steps_in
from janus_pt.config.schema import Config
from janus_pt.data.corpus import tokenizer_files
from janus_pt.export.run_origin import run_origin
from janus_pt.export.write_run import write_adapters, write_whole
from janus_pt.utils.errors import UserError


def export_mean(checkpoints: Sequence[Path], target: Path, tokenizers: Sequence[Path] = ()) -> Path:
    """Export the mean of the checkpoints' weights, of adapters if these are trained.

    One parameter of each checkpoint is in memory at a time.

    Args:
        tokenizers: as `save_export` takes them; default: the run's corpus has them.

    Returns:
        `target`.

    Raises:
        UserError: a checkpoint is damaged or cannot be converted, they are not of the same model,
            or the tokenizer is missing.
    """
    # Shards of different ranks cannot be averaged where they lie: each layout cuts otherwise.
    converted = [convert(checkpoint) for checkpoint in checkpoints]
    _check_same_model(checkpoints)
    config = _config(checkpoints[0])
    steps = sorted(int(_state(checkpoint)["step"]) for checkpoint in checkpoints)
    origin = run_origin(config, steps)
    models = [
        universal.weights(folder, config.model, config.optimizer, config.adapter)
        for folder in converted
    ]
    means = mean_of(models)
    if config.adapter is not None:
        write_adapters(target, dict(means), config.adapter, config.run, origin)
    else:
        files = tokenizers or tokenizer_files(config.data)
        write_whole(target, means, config.model, config.optimizer, config.run, files, origin)
    return target


def mean_of(models: Sequence[Iterable[tuple[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """The mean of each weight, float32, over models that give theirs by name in the same order."""
    for same_weight in zip(*models, strict=True):
        (name, first), *others = same_weight
        # In float64: the mean of one model is then that model, to the last bit.
        total = first.double()
        for _, weight in others:
            total += weight
        yield name, (total / len(same_weight)).float()


def select_checkpoints(
    folders: Sequence[Path], last: int | None = None, best: int | None = None
) -> Sequence[Path]:
    """The checkpoints in `folders`; with `last` or `best` that many of the one run given.

    The best are those that the newest checkpoint names.

    Raises:
        UserError: there are too few.
    """
    if last is None and best is None:
        return folders
    if len(folders) != 1:
        raise UserError(
            f"--last and --best choose from one run, but {len(folders)} folders are given"
        )
    checkpoints = folders[0] / CHECKPOINTS
    newest_first = steps_in(checkpoints)[::-1]
    if best is None:
        steps, wanted, key = newest_first, last, "keep_last"
    else:
        steps, wanted, key = _best_steps(checkpoints, newest_first), best, "keep_best"
    paths = [checkpoints / f"step_{step}" for step in steps]
    # A state may name checkpoints that have been removed since.
    existing = [path for path in paths if path.is_dir()]
    if not wanted or not 0 < wanted <= len(existing):
        raise UserError(
            f"{checkpoints}: {wanted} checkpoints are asked for, there are {len(existing)} to "
            f"choose from; checkpoint.{key} says how many a run keeps"
        )
    return existing[:wanted]


def _best_steps(checkpoints: Path, newest_first: Sequence[int]) -> list[int]:
    """Steps of the best validations of a run, the best first, by its newest checkpoint."""
    if not newest_first:
        return []
    state = _state(checkpoints / f"step_{newest_first[0]}")
    return [int(validation["step"]) for validation in best_of(state)]


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError):
        raise UserError(
            f"{checkpoint}: {STATE} is missing or broken, the checkpoint is incomplete"
        ) from None


def _config(checkpoint: Path) -> Config:
    return Config.model_validate_json((checkpoint / "config.json").read_text())


def _check_same_model(checkpoints: Sequence[Path]) -> None:
    first = _model_identity(checkpoints[0])
    for checkpoint in checkpoints[1:]:
        if _model_identity(checkpoint) != first:
            raise UserError(
                f"{checkpoint}: of another model than {checkpoints[0]}; average checkpoints of one run"
            )


def _model_identity(checkpoint: Path) -> tuple[Any, ...]:
    """Everything that must be equal in checkpoints that can be averaged."""
    config = _config(checkpoint)
    frozen_from = _state(checkpoint).get("frozen_from")
    return config.model, config.adapter, config.optimizer.freeze, frozen_from
