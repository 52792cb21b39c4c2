"""DeepSpeed's engine: how it is made, which of its members this package uses, and its gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.utils import clip_grad_norm_, is_invalid_grad_norm
from torch import Tensor, nn

from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.parallel.captured_pass import CapturedPass
from janus_pt.parallel.gradient_sums import batch_gradients
from janus_pt.parallel.groups import Mpu
from janus_pt.parallel.host_waits import avoid_waits

REDUCE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By DeepSpeed's names of them."""


class EngineModule(Protocol):
    """The module inside an engine: a `TrainingModule`, or a `Pipeline` with one stage of it."""

    loss: ObjectiveLoss

    @property
    def model(self) -> JanusTransformer:
        """The model, or the part of it that this rank holds."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any `nn.Module`."""


class EngineOptimizer(Protocol):
    """DeepSpeed's wrapper of AdamW, or with ZeRO-0 in float32 AdamW itself."""

    param_groups: list[dict[str, Any]]
    state: Mapping[nn.Parameter, dict[str, Tensor]]
    found_inf: Tensor
    """AdamW's alone: where it is not 0, fused AdamW updates nothing."""


class Engine(Protocol):
    """The members of `deepspeed.DeepSpeedEngine` that this package uses. DeepSpeed has no types."""

    module: EngineModule
    optimizer: EngineOptimizer
    device: torch.device
    checkpoint_engine: CheckpointEngine
    global_steps: int
    """Updates done."""
    micro_steps: int
    """Micro-batches done."""
    global_samples: int
    _global_grad_norm: float
    """Behind `get_global_grad_norm`; set by us where DeepSpeed does not compute it."""

    def __call__(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Forward pass of a `TrainingModule`."""

    def backward(self, loss: Tensor) -> Tensor:
        """Backward pass; at the last micro-batch gradients are reduced over data-parallel ranks."""

    def step(self) -> None:
        """Count a micro-batch; after the last one of a step, clip the gradient and update."""

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the current micro-batch is the last one of its step."""

    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of a step on a rank."""

    def zero_optimization_stage(self) -> int:
        """ZeRO's stage, 0 for none."""

    def bfloat16_enabled(self) -> bool:
        """Whether forward and backward passes are in bfloat16."""

    def get_global_grad_norm(self) -> float:
        """Norm of the last update's whole gradient, before clipping."""

    def save_checkpoint(self, save_dir: str, **options: Any) -> bool:
        """Write this rank's files; all ranks take part."""

    def load_checkpoint(self, load_dir: str, **options: Any) -> tuple[Any, Any]:
        """Read this rank's files; all ranks take part."""


def build_engine(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    captured: bool = False,
) -> Engine:
    """Hand the module to DeepSpeed: device, precision, ZeRO, clipping. All ranks take part.

    Args:
        settings: of `derived_deepspeed_config`.
        captured: run the module's training passes as CUDA graphs.
    """
    # A PipelineModule brings its own topology, and with it DeepSpeed refuses an mpu.
    mpu = None if isinstance(module, PipelineModule) else Mpu
    engine: Engine
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        config=dict(settings),
        mpu=mpu,
        dist_init_required=False,
    )
    if hasattr(engine.optimizer, "check_grad_overflow"):
        # DeepSpeed checks for this with float16 alone, but we need it in float32 too: in the norm
        # of a gradient that tensor-parallel ranks hold identically, only the first rank's copy
        # counts, so an infinity on another rank would pass unseen.
        engine.optimizer.check_grad_overflow = True
    reduce_dtype = REDUCE_DTYPES[settings["communication_data_type"]]
    sums = batch_gradients(engine, reduce_dtype, captured)
    avoid_waits(engine.optimizer)
    if captured:
        assert sums is not None, "graphs need DeepSpeed's bfloat16 optimizer"
        assert isinstance(module, TrainingModule)
        module.captured_pass = CapturedPass(module, sums)
    return engine


def note_gradient_norm(engine: Engine) -> None:
    """Compute the gradient's norm where DeepSpeed does not, just before the update; all ranks.

    That is with ZeRO-0 in float32, where the engine's optimizer is torch's. The update is skipped if
    the norm is not finite, as DeepSpeed's own optimizers do.
    """
    if engine.zero_optimization_stage() > 0 or engine.bfloat16_enabled():
        return
    # With an infinite limit this clips nothing. DeepSpeed itself clips in `step`.
    norm = clip_grad_norm_(engine.module.parameters(), math.inf, mpu=Mpu)
    engine._global_grad_norm = norm
    found_inf = float(is_invalid_grad_norm(norm))
    engine.optimizer.found_inf = torch.tensor(found_inf, device=engine.device)


def set_steps(engine: Engine, step: int) -> None:
    """Set the number of updates that engine and optimizer have done to `step`."""
    engine.global_steps = step
    engine.micro_steps = step * engine.gradient_accumulation_steps()
    engine.global_samples = 0
    # Under ZeRO and bfloat16 AdamW is inside DeepSpeed's optimizer. Its own counts of steps correct
    # the bias of its moments.
    adamw = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in adamw.state.values():
        state["step"].fill_(step)
