"""Which parameters are trained, how fast, and the optimizer's groups that follow from it.

All parameters are trained, or all but the frozen ones, or adapters alone.
"""

from __future__ import annotations

import torch
from torch import nn

from janus_pt.config.schema import AdapterConfig, ModelConfig, OptimizerConfig
from janus_pt.model.adapters import matches, trained_with
from janus_pt.model.meta import full_shapes
from janus_pt.model.transformer import JanusTransformer


def is_trained(name: str, optimizer: OptimizerConfig, adapter: AdapterConfig | None) -> bool:
    """Whether the parameter `name` is trained. Others keep the values that `run.init_from` or
    `run.seed` gave them."""
    if adapter is not None:
        return trained_with(adapter, name)
    return not any(matches(pattern, name) for pattern in optimizer.freeze)


def trains_all(optimizer: OptimizerConfig, adapter: AdapterConfig | None) -> bool:
    """Whether no parameter is frozen."""
    return adapter is None and not optimizer.freeze


def trained_parameters(
    model: ModelConfig, optimizer: OptimizerConfig, adapter: AdapterConfig | None
) -> int:
    """Number of trained parameters of the unsharded model."""
    shapes = full_shapes(model, adapter)
    return sum(
        shape.numel() for name, shape in shapes.items() if is_trained(name, optimizer, adapter)
    )


def trained_share(
    model: ModelConfig, optimizer: OptimizerConfig, adapter: AdapterConfig | None
) -> float:
    """Trained parameters over all parameters, adapters included in both."""
    total = sum(shape.numel() for shape in full_shapes(model, adapter).values())
    return trained_parameters(model, optimizer, adapter) / total


def lr_scale(name: str, model: ModelConfig, layer_lr_decay: float) -> float:
    """The factor of the learning rate for the parameter `name` (Clark et al. 2020, ELECTRA).

    It is `layer_lr_decay` to the power of the parameter's distance from the top of its stack: 0 for
    heads and last LayerNorms, 1 for the last layer (2 in ELECTRA's code), one more for each layer
    below and for the embeddings. A token table that both stacks share is below the deeper one.
    """
    return float(layer_lr_decay ** _distance_from_top(name, model))


def _distance_from_top(name: str, model: ModelConfig) -> int:
    depths = {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
    stack, *parts = name.split(".")
    if stack == "embed_tokens":
        shared = model.source_vocab_size is None
        return (max(depths.values()) if shared else depths["decoder"]) + 1
    if stack == "embed_source":
        return depths["encoder"] + 1
    if stack in depths and parts[0] == "layers":
        return depths[stack] - int(parts[1])
    if stack in depths and "embed" in parts[0]:
        return depths[stack] + 1
    return 0


def build_optimizer(optimizer: OptimizerConfig, model: JanusTransformer) -> torch.optim.Optimizer:
    """Fused AdamW of the trained parameters. It decays matrices and tables, not biases and norms.

    Every group has an `lr_scale`, by which the step's learning rate must be multiplied.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = lr_scale(name, model.config, optimizer.layer_lr_decay)
        decay = optimizer.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    # Sorted, because the order of the parameters differs between the stages of a pipeline, and all
    # ranks must reduce the groups' gradient norms in the same order.
    listed = [
        {"params": groups[scale, decay], "lr_scale": scale, "weight_decay": decay}
        for scale, decay in sorted(groups, reverse=True)
    ]
    # The rate is 0 until a step sets its own: with ZeRO-0 and bfloat16, DeepSpeed does a step of
    # its own when the engine starts, which must change nothing.
    return torch.optim.AdamW(listed, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
