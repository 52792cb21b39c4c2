"""Decoding with weights sharded over tensor-parallel ranks: for models too large for one device."""

from __future__ import annotations

from pathlib import Path

import torch

from janus_pt.export.adapters import load_pretrained
from janus_pt.inference.janus_model import JanusModel
from janus_pt.model.initialize import load_weights
from janus_pt.model.meta import build_on_meta
from janus_pt.parallel.decode_mode import project_to_full_vocabulary
from janus_pt.parallel.materialize import materialize
from janus_pt.parallel.tensor import local_shard, tensor_parallel_layers


def load_sharded(
    directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> JanusModel:
    """This rank's part of an exported model, after `groups.initialize`.

    `generate` must then be called by all tensor-parallel ranks with the same arguments; each gets
    all outputs.

    Raises:
        UserError: the folder is incomplete or damaged.
    """
    export = load_pretrained(directory)
    # On the meta device first: no rank ever holds the memory of the whole model on its device.
    model = build_on_meta(export.config, export.adapter, tensor_parallel_layers())
    materialize(model)
    load_weights(model, export.state, local_shard)
    stored_dtype = export.state["embed_tokens.weight"].dtype
    model.to(device, dtype or stored_dtype)
    # Every rank gets the whole logits, so that all ranks choose the same tokens.
    project_to_full_vocabulary(model)
    return JanusModel(model, *export.tokenizers, mlflow_run_id=export.mlflow_run_id)
