"""The steps to try: every objective, on every path that attention and recomputation take."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "max_positions": 128,
    "dropout": 0.1,
}


@dataclass(frozen=True)
class Case:
    """A training step's configuration."""

    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    dtype_name: str = "bfloat16"
    recompute: str = "none"
    prepared: bool = False
    """The blocks of FlexAttention's masks come with the batch."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        # Here and not above: whoever makes the fake device must not have imported torch.
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype


PATHS: dict[str, dict[str, Any]] = {
    "block masks": {},
    "prepared block masks": {"prepared": True},
    "dense masks": {"model": {"attention_dropout": 0.1}},
    "recompute": {"recompute": "all"},
    "recompute attention": {"recompute": "attention"},
    "float32": {"dtype_name": "float32"},
}
ATTENTION_PATHS = ("prepared block masks", "dense masks")
"""Paths that depend on the objective; the others are tried with one."""
MODERN = {
    "norm": "rms_norm",
    "feed_forward": "gated",
    "activation": "silu",
    "positions": "rotary",
    "pre_layer_norm": True,
}
TRANSLATION = {"recipe": "translation"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "janus": {},
    "janus, content stream": {"model": {"ar_stream": "content"}},
    "janus, R-Drop": {"objective": {"r_drop": 1.0}},
    "janus, modern layers": {"model": MODERN},
    "ar": {"objective": {"name": "ar"}},
    "joint": {"objective": {"name": "joint"}},
    "bang": {"objective": {"name": "bang"}},
    "bang_nar": {"objective": {"name": "bang_nar", **TRANSLATION}},
    "cmlm": {"objective": {"name": "cmlm", **TRANSLATION}},
    "ctc": {"objective": {"name": "ctc", **TRANSLATION}},
    "cmlmc": {"objective": {"name": "cmlmc", **TRANSLATION}},
    "cmlmc, causal": {
        "model": {"causal_self_attention": True, "embedding_projection": True},
        "objective": {"name": "cmlmc", **TRANSLATION},
    },
}


def _case(objective: dict[str, Any], path: dict[str, Any]) -> Case:
    settings = {**path, **objective}
    settings["model"] = {**SHAPE, **path.get("model", {}), **objective.get("model", {})}
    return Case(**settings)


CASES = {
    f"{objective}: {path}": _case(OBJECTIVES[objective], PATHS[path])
    for objective, path in product(OBJECTIVES, PATHS)
    if path in ATTENTION_PATHS or objective == "janus"
}
