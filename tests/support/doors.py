"""Models that enter and leave: a content-stream export, adapters on it, a checkpoint of fairseq."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus_pt.config.schema import AdapterConfig
from janus_pt.export.adapters import save_adapter
from janus_pt.export.folder import load_export, save_export
from janus_pt.model.adapters import trained_with
from janus_pt.model.meta import full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.tokenizer import read_tokenizer
from tests.support.models import tiny_model, tokenizer_bytes

FAIRSEQ_IDS = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2, unk_token_id=3, mask_token_id=3)


def write_export(folder: Path, **shape: Any) -> JanusTransformer:
    """The export of a random model that P_AR alone decodes, and a tokenizer; the model."""
    tokenizer = read_tokenizer(tokenizer_bytes())
    shape = {"ar_stream": "content", "max_positions": 48, **shape}
    model = tiny_model(
        2, shape.pop("dtype", torch.float32), vocab_size=tokenizer.vocab_size, **shape
    )
    save_export(folder, model.state_dict(), model.config, [tokenizer])
    return model


def write_adapter(folder: Path, adapter: AdapterConfig, base: Path) -> None:
    """Random adapters of the export `base`, in float64."""
    generator = torch.Generator().manual_seed(4)
    state: dict[str, Tensor] = {}
    for name, shape in full_shapes(load_export(base).config, adapter).items():
        if trained_with(adapter, name):
            state[name] = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    save_adapter(folder, state, adapter, base)


def write_fairseq(folder: Path) -> JanusTransformer:
    """`model.pt`, `dict.txt` and `codes` as the authors' code leaves them; the random model."""
    size = 24
    model = tiny_model(3, torch.float32, vocab_size=size, ar_position_offset=0, **FAIRSEQ_IDS)
    config = model.config
    settings: dict[str, Any] = {
        "criterion": "janus_loss",
        "layernorm_embedding": config.embedding_layer_norm,
        "activation_fn": config.activation,
        "no_scale_embedding": not config.scale_embedding,
        "max_source_positions": config.max_positions,
        "max_target_positions": config.max_positions,
    }
    for side in ("encoder", "decoder"):
        settings[f"{side}_embed_dim"] = config.hidden_size
        settings[f"{side}_ffn_embed_dim"] = config.ffn_hidden_size
        settings[f"{side}_layers"] = getattr(config, f"{side}_layers")
        settings[f"{side}_attention_heads"] = config.num_attention_heads
        settings[f"{side}_normalize_before"] = config.pre_layer_norm
        settings[f"{side}_learned_pos"] = True
    weights = {}
    for name, tensor in model.state_dict().items():
        if "embed_positions" in name:
            tensor = torch.cat((torch.zeros(2, config.hidden_size), tensor))
        weights[name] = tensor
    table = weights.pop("embed_tokens.weight")
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
        weights[f"{name}.weight"] = table
    weights["decoder.embed_length.weight"] = weights.pop("embed_length.weight")
    torch.save({"args": argparse.Namespace(**settings), "model": weights}, folder / "model.pt")
    write_dictionary(folder, size)
    return model


def write_dictionary(folder: Path, vocab_size: int) -> None:
    """`dict.txt` for so many ids, the four special ones among them, and BPE `codes`."""
    words = "".join(f"word{number} 1\n" for number in range(4, vocab_size))
    (folder / "dict.txt").write_text(words)
    (folder / "codes").write_text("#version: 0.2\nw o\n")
