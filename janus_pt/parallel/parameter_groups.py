"""Which parameters are trained, and how fast: all alike, or not those that are frozen, or adapters alone."""

from __future__ import annotations

from janus_pt.config.schema import Config
from janus_pt.model.adapters import matches, trained_with
from janus_pt.model.meta import full_shapes


def is_trained(config: Config, name: str) -> bool:
    """Whether the parameter `name` is trained. What is not stays what `run.init_from` or `run.seed` makes it."""
    if config.adapter is not None:
        return trained_with(config.adapter, name)
    return not any(matches(pattern, name) for pattern in config.optimizer.freeze)


def trains_all(config: Config) -> bool:
    """Whether no parameter is frozen."""
    return config.adapter is None and not config.optimizer.freeze


def trained_parameters(config: Config) -> int:
    """Parameters that are trained, of the unsharded model."""
    return sum(size for name, size in _sizes(config) if is_trained(config, name))


def trained_share(config: Config) -> float:
    """Share of the parameters, adapters counted, that are trained."""
    return trained_parameters(config) / sum(size for _, size in _sizes(config))


def _sizes(config: Config) -> list[tuple[str, int]]:
    return [
        (name, shape.numel()) for name, shape in full_shapes(config.model, config.adapter).items()
    ]


def lr_scale(config: Config, name: str) -> float:
    """What the learning rate is multiplied by for the parameter `name` (after Clark et al. 2020, ELECTRA).

    `layer_lr_decay` to the power of the steps down from the top of its stack: 0 for heads and last LayerNorms, 1 for
    the last layer (2 in ELECTRA's code), one more for each layer below and for the embeddings. A token table that both
    stacks share is below the deeper one.
    """
    model = config.model
    depths = {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
    stack, *parts = name.split(".")
    if stack == "embed_tokens":
        below = (depths["decoder"] if model.source_vocab_size else max(depths.values())) + 1
    elif stack == "embed_source":
        below = depths["encoder"] + 1
    elif stack in depths and parts[0] == "layers":
        below = depths[stack] - int(parts[1])
    elif stack in depths and "embed" in parts[0]:
        below = depths[stack] + 1
    else:
        below = 0
    return float(config.optimizer.layer_lr_decay**below)
