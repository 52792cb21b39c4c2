"""Weights of the authors' fairseq models under our names.

Names are fairseq's already, except the shared embedding and the length table. Their position tables start with two
unused rows (fairseq's padding offset), which are dropped. Their decoder's mask symbol is unk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from janus_pt.config.schema import ModelConfig

POSITION_ROWS_UNUSED = 2
RENAMED = {
    "encoder.embed_tokens.weight": "embed_tokens.weight",
    "decoder.embed_length.weight": "embed_length.weight",
}


def reference_model_config(shape: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a model whose shape a folder's `config.json` gives; no dropout."""
    ids = {f"{name}_token_id": index for name, index in shape["ids"].items()}
    ids["mask_token_id"] = ids["unk_token_id"]
    own = {name: shape[name] for name in ModelConfig.model_fields if name in shape}
    return ModelConfig(**own, **ids, dropout=0.0, ar_position_offset=0)


def reference_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `JanusTransformer` from the reference's tensors (weights, or gradients of them)."""
    state = {RENAMED.get(name, name): tensor for name, tensor in weights.items()}
    return {
        name: tensor[POSITION_ROWS_UNUSED:] if name.endswith("embed_positions.weight") else tensor
        for name, tensor in state.items()
    }
