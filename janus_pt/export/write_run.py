"""The export of a run: a model, or a folder of adapters. Not for several ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from janus_pt.config.origin import Origin
from janus_pt.config.run_schema import RunConfig
from janus_pt.config.schema import AdapterConfig, ModelConfig, OptimizerConfig
from janus_pt.export.adapters import save_adapter
from janus_pt.export.folder import load_export, save_export
from janus_pt.model.adapters import merged
from janus_pt.model.initialize import draw
from janus_pt.model.meta import full_shapes
from janus_pt.parallel.parameter_groups import is_trained

MLFLOW_RUN = "mlflow_run.json"
"""The file of a run folder that names its MLflow run."""


def write_whole(
    target: Path,
    trained: Iterable[tuple[str, Tensor]],
    model: ModelConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    tokenizers: Sequence[Path],
    origin: Origin,
) -> None:
    """Write the whole model of a run without adapters, its frozen weights included.

    Args:
        trained: float32 weights by name.
        tokenizers, origin: as `save_export` takes them.
    """
    weights = _with_frozen(trained, model, optimizer, run)
    run_id = mlflow_run_id(Path(run.output_dir))
    save_export(target, weights, model, tokenizers, run_id, origin)


def write_adapters(
    target: Path,
    trained: Mapping[str, Tensor],
    adapter: AdapterConfig,
    run: RunConfig,
    origin: Origin,
) -> None:
    """Write the adapters of a run alone.

    Args:
        trained: float32 weights by name, of the adapters and of `modules_to_save`.
    """
    # The limits see to it: adapters are trained on an exported model.
    assert run.init_from is not None
    run_id = mlflow_run_id(Path(run.output_dir))
    save_adapter(target, trained, adapter, run.init_from, run_id, origin)


def write_merged(
    target: Path,
    trained: Mapping[str, Tensor],
    adapter: AdapterConfig,
    run: RunConfig,
    tokenizers: Sequence[Path],
    origin: Origin,
) -> None:
    """Write the whole model with the LoRA weights of a run added to the weights of `run.init_from`."""
    assert run.init_from is not None
    base = load_export(run.init_from)
    # In the type of the export, as adapters loaded from their folder are merged.
    dtype = base.state["embed_tokens.weight"].dtype
    typed = {name: weight.to(dtype) for name, weight in trained.items()}
    whole = merged(base.state.items(), typed, adapter)
    run_id = mlflow_run_id(Path(run.output_dir))
    save_export(target, whole, base.config, tokenizers, run_id, origin)


def mlflow_run_id(run_folder: Path) -> str | None:
    """The MLflow run of a run folder, if there is one."""
    # An export must not fail because MLflow is off or has failed.
    try:
        return str(json.loads((run_folder / MLFLOW_RUN).read_text())["run_id"])
    except (OSError, ValueError, KeyError):
        return None


def _with_frozen(
    trained: Iterable[tuple[str, Tensor]],
    model: ModelConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
) -> Iterator[tuple[str, Tensor]]:
    """All weights: the trained ones, then the frozen ones from where the run had them."""
    yield from trained
    frozen = {
        name: shape
        for name, shape in full_shapes(model).items()
        if not is_trained(name, optimizer, adapter=None)
    }
    if not frozen:
        return
    if run.init_from is not None:
        state = load_export(run.init_from).state
        for name in frozen:
            yield name, state[name].float()
    else:
        # Weights are a function of seed and name: drawn again, they are what the run began with.
        for name, shape in frozen.items():
            yield name, draw(name, shape, model.init_std, run.seed).float()
