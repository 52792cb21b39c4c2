"""The DeepSpeed engine around the training module: what is done to the model, in order."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from megatron.core import parallel_state
from torch import nn

from janus_pt.config import Config, OptimizerConfig
from janus_pt.deepspeed_config import derived_deepspeed_config
from janus_pt.model.janus import JanusTransformer
from janus_pt.parallel.groups import Mpu
from janus_pt.parallel.tensor import tensor_parallel_layers, vocab_shard
from janus_pt.train.step import TrainingModule


def build_module(config: Config) -> TrainingModule:
    """The model on sharded layers with its objective; the same weights for a seed on any layout."""
    torch.manual_seed(config.run.seed)
    model = JanusTransformer(config.model, tensor_parallel_layers(config.model.init_std))
    model.recompute_activations(config.parallel.activation_checkpointing)
    return TrainingModule(model, config.objective, vocab_shard(model.embed_tokens, config.model.vocab_size))


def build_engine(config: Config, module: TrainingModule) -> Any:
    """Hand the module to DeepSpeed: device, precision, ZeRO, gradient clipping. All ranks take part."""
    optimizer = build_optimizer(config.optimizer, module)
    settings = derived_deepspeed_config(config, parallel_state.get_data_parallel_world_size())
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, mpu=Mpu, dist_init_required=False
    )
    return engine


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW; matrices and tables are decayed, biases and LayerNorms are not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
