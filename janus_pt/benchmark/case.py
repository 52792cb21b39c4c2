"""The cases that are measured: model, objective and random tokens, all samples equally long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from janus_pt.checks import read_config
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.initialize import initialize_weights
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.base import MaskedPair
from janus_pt.objectives.coefficients import coefficients, term_rows
from janus_pt.objectives.examples import collate_examples
from janus_pt.objectives.expected_sizes import SampleSizes, sample_sizes, samples_of
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch
from janus_pt.packing.example import Example

SHAPES = {"small": (8000, 32, 32), "large": (50000, 8, 128)}
"""Name -> vocabulary, pairs, tokens of a source and of a target."""
MASKED_SHARE = 0.55
"""Share of the target tokens of the two shapes that are masked."""
SEED = 1
FIRST_TOKEN = 5
"""Lower ids are special: no random text has them."""


@dataclass(frozen=True)
class Case:
    """`samples` pairs of `sizes.source` and `sizes.target` tokens, bos and eos counted."""

    model: ModelConfig
    objective: ObjectiveConfig
    samples: int
    sizes: SampleSizes
    dtype: torch.dtype = torch.float32

    @property
    def target_tokens(self) -> int:
        """Predicted tokens of a step."""
        return self.samples * (self.sizes.target - 1)


def shape_case(shape: str, ar_stream: Literal["query", "content"] = "query") -> Case:
    """`small`, or `large`, which has a large vocabulary and longer sentences."""
    vocab_size, samples, length = SHAPES[shape]
    return pairs_case(vocab_size, samples, length, ar_stream=ar_stream)


def pairs_case(
    vocab_size: int,
    samples: int,
    length: int,
    hidden_size: int = 256,
    masked_share: float = MASKED_SHARE,
    ar_stream: Literal["query", "content"] = "query",
) -> Case:
    """Pairs of `length` source and target tokens. Dropout wherever the yardstick has it."""
    model = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        ffn_hidden_size=4 * hidden_size,
        num_attention_heads=4,
        encoder_layers=3,
        decoder_layers=3,
        activation="relu",
        scale_embedding=True,
        embedding_layer_norm=False,
        init_std=hidden_size**-0.5,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
        ar_stream=ar_stream,
    )
    objective = ObjectiveConfig.model_validate({"recipe": "translation"})
    # One token more than is predicted: bos, which nothing predicts.
    expected = sample_sizes(model, objective, length + 1)
    # Not the means of the recipe: every pair has exactly these sizes, so that no batch is larger.
    sizes = replace(expected, source=length, masked=round(masked_share * length))
    return Case(model, objective, samples, sizes)


def config_case(path: str, ar_stream: str | None) -> Case:
    """One micro-batch of a configuration's longest samples, with its mean share of masked tokens."""
    # Only here: it brings DeepSpeed with it, whose memory would be counted as the step's.
    from janus_pt.planning.plan import require_micro_batch, sample_length

    changes = [f"model.ar_stream={ar_stream}"] if ar_stream else []
    config = read_config(path, changes)
    require_micro_batch(config.data)
    length = sample_length(config.data, config.model.longest_sample)
    sizes = sample_sizes(config.model, config.objective, length)
    fitting = samples_of(config.data.micro_batch_size, config.data.batch_unit, sizes.target)
    # A micro-batch smaller than its longest sample still holds that sample.
    samples = max(1, int(fitting))
    dtype = getattr(torch, config.precision.dtype)
    return Case(config.model, config.objective, samples, sizes, dtype)


def make_examples(case: Case, seed: int = SEED) -> list[Example]:
    """One example for each sample."""
    rng = np.random.default_rng(seed)
    objective = OBJECTIVES[case.objective.name]
    model, length = case.model, case.sizes.target
    examples = []
    for _ in range(case.samples):
        source = rng.integers(FIRST_TOKEN, model.vocab_size, round(case.sizes.source))
        target = rng.integers(FIRST_TOKEN, model.vocab_size, length)
        target[0] = model.bos_token_id
        target[-1] = model.eos_token_id
        # bos and eos are never masked.
        order = rng.permutation(np.arange(1, length - 1))
        masked = np.sort(order[: round(case.sizes.masked)])
        pair = MaskedPair(source, target, masked)
        if objective.sample_noise is not None:
            pair = replace(pair, chosen=objective.sample_noise(rng, target, masked))
        examples.append(objective.example(pair, model, case.objective))
    return examples


def make_batch(case: Case) -> Batch:
    """The batch of `make_examples`."""
    return collate_examples(make_examples(case), case.objective)


def make_module(case: Case, device: torch.device) -> TrainingModule:
    """The unsharded model with its losses, in training mode."""
    model = JanusTransformer(case.model)
    initialize_weights(model, SEED)
    module = TrainingModule(model, ObjectiveLoss(case.objective, VocabShard(case.model.vocab_size)))
    return module.to(device, case.dtype).train()


def step_coefficients(module: TrainingModule, batch: Batch) -> Tensor:
    """The coefficients of a step that has only this batch."""
    counted = term_rows(batch, module.loss.terms)
    rows = torch.tensor(counted, dtype=torch.float64, device=batch.targets.device)
    return coefficients(module.loss, rows, batch.counts.targets)
