"""Decoding with a model whose weights are sharded over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.model.transformer import JanusTransformer


@contextmanager
def ready_to_decode(model: JanusTransformer) -> Iterator[None]:
    """Inside, a model in training decodes; afterwards it trains again.

    It may be whole or sharded over tensor-parallel ranks, all of which take part.
    """
    model.eval()
    # A token a row, on all ranks.
    shares_rows, model.rows.active = model.rows.active, False
    project_to_full_vocabulary(model)
    try:
        with torch.no_grad():
            yield
    finally:
        model.output_projection = None
        model.rows.active = shares_rows
        model.train()


def project_to_full_vocabulary(model: JanusTransformer) -> None:
    """Have every tensor-parallel rank compute the scores of the whole vocabulary.

    So all ranks choose the same next tokens, without exchanging their choices.
    """
    model.output_projection = partial(_gathered_logits, model)


def _gathered_logits(model: JanusTransformer, hidden: Tensor) -> Tensor:
    """Scores `[..., vocab]` from every rank's rows of the token table; all of them take part."""
    local = model.project(hidden)
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    # The rows behind the vocabulary are padding.
    return torch.cat(parts, dim=-1)[..., : model.config.vocab_size]
