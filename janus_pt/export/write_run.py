"""What a run leaves: an exported model, or a folder of adapters. Not for several ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from janus_pt.config.schema import Config
from janus_pt.export.adapters import save_adapter
from janus_pt.export.folder import load_export, save_export
from janus_pt.model.initialize import draw
from janus_pt.model.meta import full_shapes
from janus_pt.parallel.parameter_groups import is_trained

MLFLOW_RUN = "mlflow_run.json"
"""The file of a run folder that names its MLflow run."""


def write_model(
    target: Path, trained: Iterator[tuple[str, Tensor]], config: Config, tokenizers: Sequence[Path]
) -> Path:
    """Write the weights that a run has trained, and return the folder.

    With `adapter` it holds these alone, else the whole model, frozen weights included.

    Args:
        trained: float32 weights by name.
        tokenizers: as `save_export` takes them.
    """
    run_id = mlflow_run_id(config)
    if config.adapter is not None:
        assert config.run.init_from is not None
        save_adapter(target, dict(trained), config.adapter, config.run.init_from, run_id)
    else:
        save_export(target, _with_frozen(trained, config), config.model, tokenizers, run_id)
    return target


def mlflow_run_id(config: Config) -> str | None:
    """The MLflow run of this run's folder, if there is one."""
    try:
        return str(json.loads((Path(config.run.output_dir) / MLFLOW_RUN).read_text())["run_id"])
    except (OSError, ValueError, KeyError):
        return None


def _with_frozen(
    trained: Iterator[tuple[str, Tensor]], config: Config
) -> Iterator[tuple[str, Tensor]]:
    """All weights: those that are trained, then the frozen ones from where the run had them."""
    yield from trained
    frozen = {
        name: shape
        for name, shape in full_shapes(config.model).items()
        if not is_trained(config, name)
    }
    state = load_export(config.run.init_from).state if frozen and config.run.init_from else {}
    for name, shape in frozen.items():
        weight = state[name] if state else draw(name, shape, config.model.init_std, config.run.seed)
        yield name, weight.float()
