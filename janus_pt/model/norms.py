"""All kinds of norms, by the name that `model.norm` gives them.

A kind is a function from the configuration to a module from `[..., hidden]` to the same shape. Its
parameters are vectors of the hidden size; new ones are 1, and those called `bias` are 0
(`initialize.py`). Every tensor-parallel rank holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from janus_pt.config.schema import ModelConfig

NORM_EPS = 1e-5
"""Added to the variance; torch's default for LayerNorm, and fairseq's."""


def layer_norm(config: ModelConfig) -> nn.Module:
    """Mean 0 and variance 1, then a weight and a bias (Ba et al. 2016)."""
    return nn.LayerNorm(config.hidden_size, eps=NORM_EPS)


def rms_norm(config: ModelConfig) -> nn.Module:
    """Mean square 1, then a weight (Zhang and Sennrich 2019)."""
    return nn.RMSNorm(config.hidden_size, eps=NORM_EPS)


NORMS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
}


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the hidden size, of the kind that the configuration names."""
    return NORMS[config.norm](config)
