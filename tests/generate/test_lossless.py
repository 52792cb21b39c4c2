"""Speculative decoding is greedy search, token for token, whatever the batch: on random models, and on any trained one.

For a trained model: JANUS_MODEL=DIR JANUS_TEXT=FILE pytest tests/generate/test_lossless.py -s
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from janus_pt import JanusModel
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.inference.janus_model import Generation
from janus_pt.packing.slots import pad_sources
from janus_pt.tokenizer import read_tokenizer
from tests.support.models import random_sources, tiny_model, tokenizer_bytes

MODEL, TEXT = os.environ.get("JANUS_MODEL"), os.environ.get("JANUS_TEXT")
trained = pytest.mark.skipif(
    not (MODEL and TEXT), reason="no trained model: set JANUS_MODEL and JANUS_TEXT"
)


def batches(inputs: list[list[int]], seed: int) -> Iterator[list[int]]:
    """Places of the inputs in random order, in batches of 1, 2, 3 … 64, 1, 2 …: mixed lengths, every size."""
    order = np.random.default_rng(seed).permutation(len(inputs)).tolist()
    size = 1
    while order:
        yield order[:size]
        order, size = order[size:], size % 64 + 1


def differences(
    model: JanusModel, inputs: list[list[int]], **options: int
) -> list[tuple[int, Generation, Generation]]:
    """Inputs whose speculative output, in a mixed batch, is not that of greedy search, in batches of like length."""
    found, greedy = [], model.generate(inputs, **options)
    for batch in batches(inputs, seed=1):
        outputs = model.generate([inputs[i] for i in batch], "speculative", **options)
        found += [
            (i, greedy[i], one)
            for i, one in zip(batch, outputs, strict=True)
            if one.tokens != greedy[i].tokens
        ]
    return found


def is_a_tie(
    models: Sequence[JanusModel], source: list[int], greedy: Generation, other: Generation
) -> bool:
    """Whether greedy search's preference, where the two part, is within the rounding of its own arithmetic: at most
    twice (once for each token) what `models`, the one that has decoded and its like in float32, differ by on the same
    prefix."""
    eos = models[0].config.eos_token_id
    pairs = zip([*greedy.tokens, eos], [*other.tokens, eos], strict=False)
    parted = next(index for index, (a, b) in enumerate(pairs) if a != b)
    first, second = (
        one.tokens[parted] if parted < len(one.tokens) else eos for one in (greedy, other)
    )
    ours, exact = (stepwise(model, source, greedy.tokens[:parted]) for model in models)
    return bool((ours[first] - ours[second]).abs() <= 2 * (ours - exact).abs().max())


def stepwise(model: JanusModel, source: list[int], prefix: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after `prefix`, `[vocab]`."""
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    batch = pad_sources([np.array([bos, *source, eos])], model.config.pad_token_id)
    with torch.inference_mode():
        decoder = IncrementalDecoder(model.model, read_sources(model.model, batch))
        return [decoder.step(torch.tensor([token]))[0] for token in [bos, *prefix]][-1]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def random_model(request: pytest.FixtureRequest) -> JanusModel:
    tokenizer = read_tokenizer(tokenizer_bytes())
    return JanusModel(
        tiny_model(21, vocab_size=tokenizer.vocab_size, max_positions=40).to(request.param),
        tokenizer,
    )


def check(model: JanusModel, inputs: list[list[int]], exact: JanusModel, **options: int) -> None:
    """`exact`: the same model in float32."""
    different = differences(model, inputs, **options)
    dtype = next(model.model.parameters()).dtype
    print(f"\n{dtype}: {len(different)} of {len(inputs)} outputs differ from greedy search's")
    if dtype == torch.float32:
        assert not different
    for place, greedy, output in different:
        assert is_a_tie((model, exact), inputs[place], greedy, output)


def test_random_models(random_model: JanusModel) -> None:
    sources = random_sources(21, 150, vocab_size=random_model.config.vocab_size)
    exact = JanusModel(copy.deepcopy(random_model.model).float(), random_model.tokenizer)
    check(random_model, [source[1:-1] for source in sources], exact, max_length=12)


@trained
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trained_model(dtype: torch.dtype) -> None:
    assert MODEL and TEXT
    model = JanusModel.from_pretrained(MODEL, dtype, "cpu")
    exact = JanusModel.from_pretrained(MODEL, torch.float32, "cpu")
    check(
        model, [model.encode(line) for line in Path(TEXT).read_text().splitlines() if line], exact
    )
