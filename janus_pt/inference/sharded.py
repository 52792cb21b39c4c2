"""Generation with weights sharded over tensor-parallel ranks, for models that do not fit one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor, nn

from janus_pt.export.adapters import load_pretrained
from janus_pt.inference.janus_model import JanusModel
from janus_pt.model.initialize import load_weights
from janus_pt.model.meta import build_on_meta
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.materialize import materialize
from janus_pt.parallel.tensor import local_shard, tensor_parallel_layers


def load_sharded(
    directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> JanusModel:
    """This rank's part of an exported model, after `groups.initialize`.

    `generate` must then be called by all tensor-parallel ranks with the same arguments; each gets all outputs. Every
    rank has the whole logits, so that all make the same choices.

    Raises:
        UserError: the folder is incomplete or damaged.
    """
    export = load_pretrained(directory)
    model = build_on_meta(export.config, export.adapter, tensor_parallel_layers())
    materialize(model)
    load_weights(model, export.state, local_shard)
    model.to(device, dtype or export.state["embed_tokens.weight"].dtype)
    model.output_projection = partial(
        _gathered_logits, model.embed_tokens, export.config.vocab_size
    )
    return JanusModel(model, *export.tokenizers, mlflow_run_id=export.mlflow_run_id)


@contextmanager
def ready_to_decode(model: JanusTransformer) -> Iterator[None]:
    """Here a model in training, whole or sharded over tensor-parallel ranks, decodes; then it trains again."""
    model.eval()
    model.output_projection = partial(_gathered_logits, model.embed_tokens, model.config.vocab_size)
    try:
        with torch.no_grad():
            yield
    finally:
        model.output_projection = None
        model.train()


def _gathered_logits(embedding: nn.Module, vocab_size: int, hidden: Tensor) -> Tensor:
    """Scores `[..., vocab]` of every rank's part of the vocabulary; all tensor-parallel ranks take part."""
    part = F.linear(hidden, embedding.get_parameter("weight"))
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts, dim=-1)[..., :vocab_size]
