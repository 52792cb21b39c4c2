"""FLOPs by formula against what torch counts, and the peak of known accelerators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.cost import Workload
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.base import MaskedPair
from janus_pt.packing.batch import collate
from janus_pt.packing.padded import ROW_STEP
from janus_pt.planning.flops import flops_per_step
from tests.support.examples import build_example
from tests.support.models import SHAPE


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.softmax(queries @ keys.T, -1) @ values


def test_flops_are_what_torch_counts() -> None:
    """A plain model of the same shape: one sample, every slot reads every content slot and source token."""
    model = ModelConfig(
        vocab_size=50,
        hidden_size=16,
        ffn_hidden_size=24,
        num_attention_heads=1,
        encoder_layers=2,
        decoder_layers=3,
    )
    d, source_tokens, content, query, predicted = 16, 7, 9, 4, 5

    def weights(inputs: int, outputs: int) -> Tensor:
        return torch.randn(inputs, outputs, requires_grad=True)

    def feed_forward(x: Tensor) -> Tensor:
        return torch.relu(x @ weights(d, 24)) @ weights(24, d)

    source = torch.randn(source_tokens, d, requires_grad=True)
    slots = torch.randn(content + query, d, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        for _ in range(model.encoder_layers):
            mixed = attend(
                source @ weights(d, d), source @ weights(d, d), source @ weights(d, d)
            ) @ weights(d, d)
            source = feed_forward(mixed)
        for layer in range(model.decoder_layers):
            keys = slots[:content]
            slots = slots[:predicted] if layer == model.decoder_layers - 1 else slots
            slots = attend(
                slots @ weights(d, d), keys @ weights(d, d), keys @ weights(d, d)
            ) @ weights(d, d)
            slots = attend(
                slots @ weights(d, d), source @ weights(d, d), source @ weights(d, d)
            ) @ weights(d, d)
            slots = feed_forward(slots)
        (slots @ weights(d, 50)).sum().backward()
    work = Workload(source_tokens, content, query, predicted, source_tokens, content)
    assert flops_per_step(model, work) == counter.get_total_flops()


AR = ("ar", 9, ())
"""Contents and queries of eight target tokens each."""
CMLM = ("cmlm", 16, tuple(range(3, 11)))
"""Sixteen target tokens, eight of them masked."""


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (AR, {}),
        (AR, {"pre_layer_norm": True, "activation": "relu"}),
        (AR, {"encoder_layers": 1, "decoder_layers": 3, "ffn_hidden_size": 40}),
        (AR, {"source_vocab_size": 30, "num_attention_heads": 4}),
        (AR, {"feed_forward": "gated", "activation": "silu", "norm": "rms_norm"}),
        (AR, {"num_attention_heads": 4, "num_key_value_heads": 2, "positions": "rotary"}),
        (CMLM, {"encoder_layers": 3}),
        (CMLM, {"causal_self_attention": True}),
        (CMLM, {"causal_self_attention": True, "decoder_layers": 1}),
    ],
)
def test_flops_are_what_the_model_computes(
    case: tuple[str, int, tuple[int, ...]], options: dict[str, Any]
) -> None:
    """A forward and backward pass of the model itself, in which torch counts every product.

    Samples have as many slots as parts of a row are wide, so that nothing is padding.
    """
    name, length, masked = case
    model = ModelConfig.model_validate({**SHAPE, **options})
    masking = {"kind": "uniform"}
    objective = ObjectiveConfig.model_validate({"name": name, "masking": masking})
    pair = MaskedPair(np.arange(5, 13), np.arange(5, 5 + length), np.array(masked, dtype=int))
    batch = collate([build_example(pair, model, objective)] * ROW_STEP)
    transformer = JanusTransformer(model)
    with FlopCounterMode(display=False) as counter:
        encoded = transformer.encode(batch.source)
        hidden = transformer.decode(batch.slots, encoded, batch.source)
        transformer.logits(hidden).sum().backward()
    slots = batch.slots.table.shape[1]
    (keys,) = batch.slots.key_layout.indices
    work = Workload(
        source_tokens=batch.source.tokens.shape[1],
        content_slots=batch.slots.num_content,
        query_slots=slots - batch.slots.num_content,
        predicted_slots=slots - batch.slots.first_predicting,
        source_length=len(pair.source),
        content_length=keys.shape[1],
    )
    assert flops_per_step(model, work) == counter.get_total_flops()
