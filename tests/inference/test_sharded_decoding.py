"""Every way of decoding on two tensor-parallel ranks, against the whole model in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from janus_pt import JanusModel
from janus_pt.tokenizer import read_tokenizer
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.ranks import run_ranks

WAYS: list[dict[str, Any]] = [
    {"mode": "ar"},
    {"mode": "ar", "num_beams": 3},
    {"mode": "nar", "length_beam": 2},
    {"mode": "rerank"},
    {"mode": "speculative"},
]
TEXTS = ["the mask reads", "the beam writes a token and the slot reads the content", "pass"]


def decode(folder: str) -> list[list[tuple[list[int], float]]]:
    from janus_pt.inference.sharded import load_sharded
    from janus_pt.parallel import groups

    groups.initialize(tensor_parallel_size=2)
    model = load_sharded(folder)
    heads = model.model.decoder.layers[0].self_attn.q_proj.weight.shape[0]
    assert heads == model.config.hidden_size // 2
    found = [
        [(g.tokens, g.score) for g in model.generate(TEXTS, max_length=12, **way)] for way in WAYS
    ]
    groups.shutdown()
    return found


@pytest.mark.slow
def test_two_ranks_write_what_one_does(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_bytes())
    shape: dict[str, Any] = dict(vocab_size=tokenizer.vocab_size, max_positions=64)
    # What models of other programs have besides: a bias by token, and more than bos before a target.
    imported = dict(output_bias=True, target_prefix=(2, 1), positions="marian")
    model = JanusModel(tiny_model(5, **shape, **imported), tokenizer)
    model.save_pretrained(tmp_path / "export")
    for answer in run_ranks(decode, 2, str(tmp_path / "export")):
        for way, outputs in zip(WAYS, answer, strict=True):
            expected = model.generate(TEXTS, max_length=12, **way)
            assert [tokens for tokens, _ in outputs] == [g.tokens for g in expected]
            np.testing.assert_allclose(
                [score for _, score in outputs], [g.score for g in expected], rtol=1e-9
            )
