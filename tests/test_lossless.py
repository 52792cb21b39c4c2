"""Speculative decoding is greedy search, token for token, whatever the batch: on random models, and on any trained one.

For a trained model: JANUS_MODEL=DIR JANUS_TEXT=FILE pytest tests/test_lossless.py -s
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import random_sources, tiny_model, tokenizer_bytes

from janus_pt import JanusModel
from janus_pt.api import Generation
from janus_pt.generate.cache import IncrementalDecoder, read_sources
from janus_pt.slots import pad_sources
from janus_pt.tokenizer import Tokenizer

MODEL, TEXT = os.environ.get("JANUS_MODEL"), os.environ.get("JANUS_TEXT")
trained = pytest.mark.skipif(not (MODEL and TEXT), reason="no trained model: set JANUS_MODEL and JANUS_TEXT")
ROUNDINGS = 4
"""How many times the rounding seen among some neighbours may be met among others."""


def batches(inputs: list[list[int]], seed: int) -> Iterator[list[int]]:
    """Places of the inputs in random order, in batches of 1, 2, 3 … 64, 1, 2 …: mixed lengths, every size."""
    order = np.random.default_rng(seed).permutation(len(inputs)).tolist()
    size = 1
    while order:
        yield order[:size]
        order, size = order[size:], size % 64 + 1


def differences(model: JanusModel, inputs: list[list[int]], **options: int) -> list[tuple[int, Generation, Generation]]:
    """Inputs whose speculative output, in a mixed batch, is not that of greedy search, in batches of like length."""
    found, greedy = [], model.generate(inputs, **options)
    for batch in batches(inputs, seed=1):
        outputs = model.generate([inputs[i] for i in batch], "speculative", **options)
        found += [(i, greedy[i], one) for i, one in zip(batch, outputs, strict=True) if one.tokens != greedy[i].tokens]
    return found


def is_a_tie(model: JanusModel, inputs: list[list[int]], place: int, greedy: Generation, other: Generation) -> bool:
    """Whether, where the two part, greedy search's preference is within what rounding alone changes: the difference
    between its own log-probabilities for this input alone and among others, on the same prefix."""
    eos = model.config.eos_token_id
    pairs = zip([*greedy.tokens, eos], [*other.tokens, eos], strict=False)
    parted = next(index for index, (a, b) in enumerate(pairs) if a != b)
    first, second = (one.tokens[parted] if parted < len(one.tokens) else eos for one in (greedy, other))
    neighbours = [inputs[(place + step) % len(inputs)] for step in range(1, 20)]
    alone, among = (stepwise(model, [inputs[place], *more], greedy.tokens[:parted]) for more in ([], neighbours))
    return bool((alone[-1, first] - alone[-1, second]).abs() <= ROUNDINGS * (alone - among).abs().max())


def stepwise(model: JanusModel, inputs: list[list[int]], prefix: list[int]) -> torch.Tensor:
    """Log-probabilities of the first input of a batch, `[prefix + 1, vocab]`; all of the batch write `prefix`."""
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    batch = pad_sources([np.array([bos, *tokens, eos]) for tokens in inputs], model.config.pad_token_id)
    with torch.inference_mode():
        decoder = IncrementalDecoder(model.model, read_sources(model.model, batch))
        return torch.stack([decoder.step(torch.full((len(inputs),), token))[0] for token in [bos, *prefix]])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def random_model(request: pytest.FixtureRequest) -> JanusModel:
    tokenizer = Tokenizer(tokenizer_bytes())
    return JanusModel(tiny_model(21, vocab_size=tokenizer.vocab_size, max_positions=40).to(request.param), tokenizer)


def check(model: JanusModel, inputs: list[list[int]], **options: int) -> None:
    different = differences(model, inputs, **options)
    dtype = next(model.model.parameters()).dtype
    print(f"\n{dtype}: {len(different)} of {len(inputs)} outputs differ from greedy search's")
    if dtype == torch.float32:
        assert not different
    for place, greedy, output in different:
        assert is_a_tie(model, inputs, place, greedy, output)


def test_random_models(random_model: JanusModel) -> None:
    sources = random_sources(21, 150, vocab_size=random_model.config.vocab_size)
    check(random_model, [source[1:-1] for source in sources], max_length=12)


@trained
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trained_model(dtype: torch.dtype) -> None:
    assert MODEL and TEXT
    model = JanusModel.from_pretrained(MODEL, dtype, "cpu")
    check(model, [model.encode(line) for line in Path(TEXT).read_text().splitlines() if line])
