"""Passes of decoding as one recorded call: against the modules that were recorded, and against an uncached pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.generate.modes import check_options
from janus_pt.inference.cpu import lay_out_for_cpu, quantize_int8
from janus_pt.inference.private_torch import can_multiply_int8
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.janus import causal_slots
from tests.support.models import MODERN, as_source, full_pass, random_sources, tiny_model

VARIANTS: dict[str, dict[str, Any]] = {
    "query": {},
    "content": {"ar_stream": "content", "ar_position_offset": 1},
    "modern": MODERN,
}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("ar", {}),
    ("ar", {"num_beams": 3}),
    ("ar", {"do_sample": True, "num_return_sequences": 2}),
    ("nar", {"iterations": 3, "length_beam": 2}),
    ("speculative", {}),
    ("rerank", {"iterations": 2}),
]


def laid_out(**shape: Any) -> JanusTransformer:
    model = tiny_model(4, **{"max_positions": 80, **shape})
    lay_out_for_cpu(model)
    return model


def decode_both(
    model: JanusTransformer, mode: str, options: Mapping[str, Any], count: int
) -> tuple[Hypotheses, Hypotheses]:
    """With recorded passes, and without."""
    sources, way = as_source(random_sources(count, count)), check_options(mode, **options)
    recorded = way.decode(model, sources)
    calls, model.recorded = model.recorded, None
    plain = way.decode(model, sources)
    model.recorded = calls
    return recorded, plain


def assert_equal(recorded: Hypotheses, plain: Hypotheses) -> None:
    assert torch.equal(recorded.tokens, plain.tokens)
    assert torch.equal(recorded.scores, plain.scores)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("mode", "options"), WAYS)
def test_outputs_are_equal_to_the_last_bit(
    mode: str, options: dict[str, Any], variant: str
) -> None:
    """In batches of other sizes than the recorded one, too."""
    model = laid_out(**VARIANTS[variant])
    for count in (2, 1, 5):
        assert_equal(*decode_both(model, mode, {**options, "max_length": 12}, count))


def test_no_size_is_recorded() -> None:
    """Nor the room in the buffers, which grow on the way."""
    model = laid_out()
    decode_both(model, "ar", {"max_length": 12}, 3)
    # With padding in the batch and without, which a single source never has.
    decode_both(model, "ar", {"max_length": 12}, 1)
    assert model.recorded is not None
    calls = dict(model.recorded._calls)
    for count in (2, 7):
        assert_equal(*decode_both(model, "ar", {"max_length": 40}, count))
    assert model.recorded._calls == calls and len(calls) == 2


@pytest.mark.skipif(not can_multiply_int8(), reason="no int8 kernels on this CPU")
@pytest.mark.parametrize(("mode", "options"), WAYS)
def test_int8_weights(mode: str, options: dict[str, Any]) -> None:
    model = tiny_model(4, torch.float32, max_positions=80)
    quantize_int8(model)
    for count in (2, 5):
        assert_equal(*decode_both(model, mode, {**options, "max_length": 12}, count))


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_are_an_uncached_pass(variant: str) -> None:
    model = laid_out(**VARIANTS[variant])
    sources = random_sources(2, 3)
    targets = np.random.default_rng(3).integers(0, 24, (3, 40))
    targets[:, 0] = model.config.bos_token_id
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, read_sources(model, as_source(sources)))
        columns = torch.from_numpy(targets).T[:-1]
        steps = torch.stack([decoder.step(column) for column in columns], dim=1)
    for row, source in enumerate(sources):
        contents, queries = causal_slots(targets[row], model.config)
        whole = full_pass(model, source, contents, queries)[-len(contents) :]
        torch.testing.assert_close(steps[row], whole, rtol=1e-12, atol=1e-12)


def test_a_converted_model_and_a_copy_are_recorded_anew() -> None:
    model = laid_out()
    decode_both(model, "ar", {}, 2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    for changed in (other, model.float()):
        assert_equal(*decode_both(changed, "ar", {}, 2))
