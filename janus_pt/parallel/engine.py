"""The DeepSpeed engine around the model: all that is done to it from outside, in order."""

from __future__ import annotations

import math
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.utils import clip_grad_norm_, is_invalid_grad_norm
from megatron.core import parallel_state
from torch import Tensor, nn

from janus_pt.config.schema import Config
from janus_pt.model.initialize import load_weights
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.parallel.deepspeed_config import derived_deepspeed_config
from janus_pt.parallel.groups import Mpu
from janus_pt.parallel.materialize import build_model
from janus_pt.parallel.parameter_groups import is_trained, lr_scale
from janus_pt.parallel.pipeline import Pipeline
from janus_pt.parallel.tensor import local_shard, vocab_shard

Module = TrainingModule | Pipeline
"""What an engine holds: the whole model with its loss, or one stage of it."""


def build_module(config: Config, weights: dict[str, Tensor] | None = None) -> Module:
    """This rank's part of the model with its objective: the weights of `run.seed`, or the unsharded ones given."""
    module = Pipeline(config) if config.parallel.pipeline_parallel_size > 1 else _whole(config)
    if weights is not None:
        load_weights(module.model, weights, local_shard)
    for name, parameter in module.model.named_parameters():
        parameter.requires_grad_(is_trained(config, name))
    return module


def _whole(config: Config) -> TrainingModule:
    model = build_model(config.model, config.run.seed, adapter=config.adapter)
    model.recompute_activations(config.parallel.activation_checkpointing)
    return TrainingModule(
        model,
        ObjectiveLoss(config.objective, vocab_shard(model.embed_tokens, config.model.vocab_size)),
    )


def build_engine(config: Config, module: Module) -> Any:
    """Hand the module to DeepSpeed: device, precision, ZeRO, gradient clipping. All ranks take part."""
    optimizer = build_optimizer(config, module.model)
    settings = derived_deepspeed_config(config, parallel_state.get_data_parallel_world_size())
    mpu = None if isinstance(module, Pipeline) else Mpu  # a pipeline brings its own
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, mpu=mpu, dist_init_required=False
    )
    if hasattr(engine.optimizer, "check_grad_overflow"):
        # In float32, too: of what tensor-parallel ranks hold alike, the norm knows the first rank's gradient only.
        engine.optimizer.check_grad_overflow = True
    return engine


def note_gradient_norm(engine: Any) -> None:
    """Before the update: have the engine know the gradient's norm where DeepSpeed does not compute it for us, and
    the optimizer do nothing if the norm is not finite, as DeepSpeed's own do."""
    if engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled():
        norm = clip_grad_norm_(engine.module.parameters(), math.inf, mpu=Mpu)
        engine._global_grad_norm = norm
        engine.optimizer.found_inf = torch.tensor(
            float(is_invalid_grad_norm(norm)), device=engine.device
        )


def is_pipeline(engine: Any) -> bool:
    """Whether the engine drives a stage of a pipeline."""
    return isinstance(engine, PipelineEngine)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW of what is trained; matrices and tables are decayed, biases and LayerNorms are not.

    Every group has an `lr_scale`, which the rate of a step is to be multiplied by. The rate is 0 until a step sets its
    own: with ZeRO-0 and bfloat16, DeepSpeed does a step of its own at the start.
    """
    settings = config.optimizer
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kind = lr_scale(config, name), settings.weight_decay if p.ndim > 1 else 0.0
            groups.setdefault(kind, []).append(p)
    # The order does not depend on that of the parameters, which differs between the stages of a pipeline.
    listed = [
        {"params": groups[kind], "lr_scale": kind[0], "weight_decay": kind[1]}
        for kind in sorted(groups)[::-1]
    ]
    return torch.optim.AdamW(listed, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
