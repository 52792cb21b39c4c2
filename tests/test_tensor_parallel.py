"""megatron-core's layers and the vocabulary-parallel losses at TP=2 against the plain model, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from distributed import run_ranks

from janus_pt.config import ModelConfig, ObjectiveConfig
from janus_pt.data.examples import make_example
from janus_pt.model.janus import JanusTransformer
from janus_pt.objectives.batch import Batch, collate
from janus_pt.train.step import TrainingModule

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    vocab_size=53,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=4,
    encoder_layers=2,
    decoder_layers=2,
    max_positions=32,
    length_classes=16,
    dropout=0.0,
    init_std=0.3,
)
PADDED_VOCAB = 56


def batch() -> Batch:
    rng = np.random.default_rng(0)
    objective = ObjectiveConfig.model_validate({"recipe": "translation"})
    pairs = [{"source": rng.integers(5, 53, n), "target": rng.integers(5, 53, m)} for n, m in ((7, 9), (3, 4), (10, 6))]
    return collate([make_example(pair, rng, model=CONFIG, objective=objective) for pair in pairs], 0)


def loss_and_gradients(module: TrainingModule) -> tuple[list[float], dict[str, torch.Tensor]]:
    coefficients = torch.linspace(0.1, 0.7, 7, dtype=torch.float64)
    total, sums = module.double()(batch(), coefficients)
    total.backward()
    return [float(total.detach()), *sums.tolist()], {n: p.grad for n, p in module.model.named_parameters()}


def objective() -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"recipe": "translation"})


def sharded(parallel_size: int) -> tuple[list[float], dict[str, Any]]:
    """Loss and gradients of this rank's shard, with the place the shard has in the whole tensor."""
    from janus_pt.parallel import groups
    from janus_pt.parallel.tensor import tensor_parallel_layers, vocab_shard

    groups.initialize(parallel_size)
    padded = CONFIG.model_copy(update={"vocab_size": PADDED_VOCAB})
    torch.manual_seed(3)
    model = JanusTransformer(padded, tensor_parallel_layers(CONFIG.init_std))
    losses, gradients = loss_and_gradients(TrainingModule(model, objective(), vocab_shard(model.embed_tokens, 53)))
    groups.shutdown()
    return losses, {name: gradient.numpy() for name, gradient in gradients.items()}


def test_two_ranks_compute_what_one_does() -> None:
    from janus_pt.losses import VocabShard

    padded = CONFIG.model_copy(update={"vocab_size": PADDED_VOCAB})
    torch.manual_seed(3)
    plain = TrainingModule(JanusTransformer(padded), objective(), VocabShard(53))
    losses, gradients = loss_and_gradients(plain)
    ranks = run_ranks(sharded, 2, 2)
    for rank_losses, _ in ranks:
        np.testing.assert_allclose(rank_losses, losses, rtol=1e-12)
    for name, whole in gradients.items():
        first, second = (torch.from_numpy(rank[1][name]) for rank in ranks)
        if first.shape == whole.shape:
            assert torch.equal(first, second), f"{name} is replicated and must be equal on both ranks"
            joined = first
        else:
            dim = next(d for d in range(whole.ndim) if first.shape[d] != whole.shape[d])
            joined = torch.cat((first, second), dim)
        torch.testing.assert_close(joined, whole, rtol=1e-10, atol=1e-12, msg=name)
