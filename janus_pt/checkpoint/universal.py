"""Checkpoints that any layout can load: DeepSpeed's universal format, a folder for each parameter.

DeepSpeed's converter takes the shards of all ranks apart and puts each parameter together, with its
two moments; the names are then changed to the unsharded model's. Loading is ours: every rank cuts
its part out of the whole, for any ZeRO stage. (DeepSpeed's loader fails for stage 3 with tensor
parallelism, and cannot change between a plain engine and a pipeline.)
"""

from __future__ import annotations

import contextlib
import io
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
from deepspeed.utils.tensor_fragment import (
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from megatron.core import parallel_state
from torch import Tensor, nn

from janus_pt.checkpoint.layout import Layout
from janus_pt.checkpoint.shard_patterns import shard_patterns
from janus_pt.config.schema import AdapterConfig, ModelConfig, OptimizerConfig
from janus_pt.model.meta import full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.engine import Engine, set_steps
from janus_pt.parallel.parameter_groups import is_trained
from janus_pt.parallel.tensor import local_shard
from janus_pt.utils.errors import UserError

PARAMETERS = "zero"
"""The folder in which DeepSpeed's converter has a folder for each parameter."""
WEIGHT, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
"""Names of the files of a parameter: its float32 weight, and Adam's two moments."""
STAGE_PREFIX = re.compile(r"(\d+\.)?model\.")
"""What our modules put before a parameter's name: a pipeline's stage, the model's attribute."""


def info(model: JanusTransformer, table_stage: int) -> dict[str, Any]:
    """What DeepSpeed's converter must know of shards, for `client_state`.

    Several pipeline stages may hold the token table: the converter takes it from `table_stage`, where
    by itself it would look on the first stage only.
    """
    return {
        "universal_checkpoint_info": {
            "universal_checkpoint_version": 0.2,
            "vocabulary_parameter_patterns": [r".*embed_tokens\.weight"],
            "original_vocab_size": model.config.vocab_size,
            **shard_patterns(model.config, model.adapter),
            "pipeline_replicated_parameter_patterns": [
                rf"(?!{table_stage}\.).*embed_tokens\.weight"
            ],
        }
    }


def is_universal(checkpoint: Path) -> bool:
    """Whether any layout can load it."""
    return (checkpoint / PARAMETERS).is_dir()


def write(checkpoint: Path, target: Path, layout: Layout, workers: int = 1) -> None:
    """Convert the DeepSpeed files of `checkpoint`, written on `layout`, into the empty `target`.

    Args:
        workers: processes that read, and then that merge.

    Raises:
        UserError: DeepSpeed cannot convert that layout.
    """
    if layout["zero_stage"] == 0:
        raise UserError(
            f"{checkpoint}: was written with parallel.zero_stage 0, whose checkpoints fit only the "
            "layout that wrote them; go on with that layout and stage 1 or higher from the next "
            "run on"
        )
    # The converter is a script, and takes its command line.
    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(target),
        num_extract_workers=workers,
        num_merge_workers=workers,
        keep_temp_folder=False,
        # Strict, it refuses patterns that match no parameter, as patterns of adapters often do.
        strict=False,
        inject_missing_state=False,
    )
    # It prints a line a parameter and draws progress bars.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    # DeepSpeed's own pointer; what counts here is `latest`.
    (target.parent / "latest_universal").unlink(missing_ok=True)
    _rename_parameters(target / PARAMETERS)


def _rename_parameters(folder: Path) -> None:
    """Give the parameters' folders the names of the unsharded model."""
    # Listed first: renaming while a folder is being read may show an entry twice.
    for path in list(folder.iterdir()):
        if path.is_dir():
            path.rename(folder / STAGE_PREFIX.sub("", path.name, count=1))


def read(checkpoint: Path, name: str, key: str, shape: torch.Size) -> Tensor:
    """A full tensor of a universal checkpoint: `fp32`, `exp_avg` or `exp_avg_sq` of `name`."""
    path = checkpoint / PARAMETERS / name / f"{key}.pt"
    # Mapped, not read: a rank that needs a shard touches only the pages of its shard.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    full: Tensor = content["param"] if isinstance(content, dict) else content
    # Of ZeRO-3 without tensor parallelism the converter leaves tensors flat, and the padding of
    # the token table in place.
    rows = full.reshape(-1, *shape[1:])
    return rows[: shape[0]]


def weights(
    checkpoint: Path, model: ModelConfig, optimizer: OptimizerConfig, adapter: AdapterConfig | None
) -> Iterator[tuple[str, Tensor]]:
    """The float32 weights in a universal checkpoint, which are the trained ones, one by one."""
    for name, shape in full_shapes(model, adapter).items():
        if is_trained(name, optimizer, adapter):
            yield name, read(checkpoint, name, WEIGHT, shape)


@torch.no_grad()
def load(engine: Engine, checkpoint: Path, step: int) -> None:
    """Give every rank its part of weights and optimizer state, as after `step` steps.

    The engine must have done a step, so that its optimizer has a state. All ranks take part.
    """
    optimizer: Any = engine.optimizer
    _link_moments(optimizer)
    model = engine.module.model
    shapes = full_shapes(model.config, model.adapter)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # ZeRO-3 gives the parameters it has split an id.
        is_partitioned = hasattr(parameter, "ds_id")
        for key in (WEIGHT, *MOMENTS):
            full = read(checkpoint, name, key, shapes[name])
            shard = local_shard(parameter, full).to(engine.device)
            if is_partitioned:
                _put_partitioned(parameter, key, shard)
            else:
                _put_whole(engine, parameter, key, shard)
    # bfloat16 weights are computed from the float32 masters, which alone have been set.
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    set_steps(engine, step)


def _link_moments(optimizer: Any) -> None:
    """Have DeepSpeed's optimizers that keep master weights know the moments of every parameter.

    They link parameters with their moments after the first group's step, which is too early for the
    parameters of the second group.
    """
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _put_whole(engine: Engine, parameter: nn.Parameter, key: str, shard: Tensor) -> None:
    """For ZeRO 0 to 2, which keep weights whole on every data-parallel rank."""
    if not hasattr(parameter, "_hp_mapping"):
        # No ZeRO, float32: there is no master copy beside the parameter.
        target = parameter if key == WEIGHT else engine.optimizer.state[parameter][key]
        target.copy_(shard)
    elif key == WEIGHT:
        safe_set_full_fp32_param(parameter, shard)
    else:
        safe_set_full_optimizer_state(parameter, shard, key)


def _put_partitioned(parameter: Any, key: str, shard: Tensor) -> None:
    """For ZeRO-3: each data-parallel rank holds a run of the elements, the last ones padded."""
    rank = parallel_state.get_data_parallel_rank()
    ranks = parallel_state.get_data_parallel_world_size()
    size = parameter.ds_tensor.numel()
    padded = F.pad(shard.flatten(), (0, size * ranks - shard.numel()))
    local = padded.narrow(0, size * rank, size)
    if key != WEIGHT:
        safe_set_local_optimizer_state(parameter, local, key)
        return
    safe_set_local_fp32_param(parameter, local)
    parameter.ds_tensor.copy_(local)
    # Small parameters stay gathered between steps: what they are computed with must change, too.
    if parameter.ds_status == ZeroParamStatus.AVAILABLE:
        parameter.copy_(shard)
