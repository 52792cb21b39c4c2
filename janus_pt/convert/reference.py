"""Weights of the authors' fairseq models under our names.

Names are fairseq's already, except the shared embedding and the length table. Their position tables
start with two unused rows (fairseq's padding offset), which are dropped. Their decoder's mask symbol
is unk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from janus_pt.config.schema import ModelConfig

UNUSED_POSITION_ROWS = 2
RENAMED = {
    "encoder.embed_tokens.weight": "embed_tokens.weight",
    "decoder.embed_length.weight": "embed_length.weight",
}


def reference_model_config(shape: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a reference model, without dropout.

    Args:
        shape: the content of its folder's `config.json`: sizes under our names, special ids under
            `ids`.
    """
    ids = {f"{name}_token_id": index for name, index in shape["ids"].items()}
    # Their decoder reads unk where a token is masked.
    ids["mask_token_id"] = ids["unk_token_id"]
    sizes = {name: shape[name] for name in ModelConfig.model_fields if name in shape}
    # Their AR query stands one position before the token that it predicts.
    return ModelConfig(**sizes, **ids, dropout=0.0, ar_position_offset=0)


def reference_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `JanusTransformer` from the reference's tensors, or from their gradients."""
    state = {}
    for name, tensor in weights.items():
        # fairseq numbers positions from padding_idx + 1: no token reads the rows before.
        if name.endswith("embed_positions.weight"):
            tensor = tensor[UNUSED_POSITION_ROWS:]
        state[RENAMED.get(name, name)] = tensor
    return state
