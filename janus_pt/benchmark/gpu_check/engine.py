"""Engines on random data, without a corpus: what the checks of several processes train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from janus_pt.benchmark.case import FIRST_TOKEN
from janus_pt.config.schema import Config
from janus_pt.model.masks import uses_block_masks
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch
from janus_pt.packing.example import BOUNDARY_TOKENS
from janus_pt.parallel import groups
from janus_pt.parallel.assemble import assemble
from janus_pt.parallel.engine import Engine

LENGTH = 48
"""Tokens of a sample of the small model."""
SMALL_MODEL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    # Heads of 16 elements: FlexAttention takes no smaller ones.
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "max_positions": LENGTH,
    "length_classes": 64,
    "pre_layer_norm": True,
    "dropout": 0.1,
}


def small_config(
    parallel: dict[str, Any] | None = None, dtype: str = "float32", micro_batches: int = 4
) -> Config:
    """A step of `micro_batches` of two samples each, over all data-parallel ranks."""
    return Config.model_validate(
        {
            "model": SMALL_MODEL,
            "data": {
                "train": [{"path": "none"}],
                "batch_unit": "sequences",
                "global_batch_size": 2 * micro_batches,
                "micro_batch_size": 2,
            },
            "optimizer": {"lr": 1e-3},
            "parallel": parallel or {},
            "precision": {"dtype": dtype},
            "run": {"output_dir": "none", "max_steps": 10},
        }
    )


def start(config: Config) -> Engine:
    """This rank's engine; all ranks take part."""
    groups.initialize(config.parallel.tensor_parallel_size, config.parallel.pipeline_parallel_size)
    groups.set_float32_products(config.precision)
    return assemble(config)


def random_batch(config: Config, length: int, seed: int) -> Batch:
    """A micro-batch of random samples of `length` tokens, the same for the same seed."""
    model, objective, data = config.model, config.objective, config.data
    rng = np.random.default_rng(seed)
    size = data.micro_batch_size
    samples = max(1, size // length) if data.batch_unit == "tokens" else size
    examples = []
    for _ in range(samples):
        text = rng.integers(FIRST_TOKEN, model.common_vocab_size, length - BOUNDARY_TOKENS)
        pair = {"source": text, "target": text[::-1].copy()}
        fields = {"text": text} if objective.masking.kind == "infill" else pair
        examples.append(make_example(fields, rng, model=model, objective=objective))
    on_blocks = uses_block_masks(groups.device(), model.attention_dropout, model.head_size)
    batch = collate_examples(examples, objective, model if on_blocks else None)
    return batch.pin_memory() if torch.cuda.is_available() else batch


def device_computes() -> bool:
    """Whether sums on this device are what they should be: a stand-in for a GPU computes nothing."""
    numbers = torch.arange(100, device=groups.device())
    return int((numbers * numbers).sum()) == 328_350
