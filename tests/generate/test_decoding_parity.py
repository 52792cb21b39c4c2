"""Decoding against what the authors' generators produced on the same weights.

Run against any folder in the same format: JANUS_GOLDENS=DIR pytest tests/generate/test_decoding_parity.py
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from janus_pt.generate.autoregressive import AutoregressiveOptions, autoregressive
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.mask_predict import candidate_lengths
from janus_pt.generate.refine import all_masked, refine
from janus_pt.packing.example import BOUNDARY_TOKENS
from janus_pt.packing.slots import pad_sources
from tests.support.goldens import ROOT, SHAPES, TRANSLATION, Golden, needs_goldens

pytestmark = needs_goldens

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
KEY = re.compile(
    r"(fp32|fp64)/decode/(ar_beam(\d+)_full/hyp0_tokens|mp_iter(\d+)_beam(\d+)/tokens)"
)


def cases(kind: str) -> list[tuple[str, ...]]:
    """What the folder holds: (model, precision, beams) for "ar", (model, precision, max_iter, beams) for "mp"."""
    found = []
    for name in TRANSLATION:
        keys = np.load(ROOT / f"{name}.npz", allow_pickle=False).files
        matches = [
            match for match in map(KEY.fullmatch, keys) if match and match[2].startswith(kind)
        ]
        found += [
            (name, match[1], *(group for group in match.groups()[2:] if group)) for match in matches
        ]
    return found


AUTOREGRESSIVE = [case for case in cases("ar") if not SHAPES[case[0]]["pre_layer_norm"]]
"""The reference's pre-LN AR path is unsound and left out."""
MASK_PREDICT = [case for case in cases("mp") if case[1] == "fp32"]
"""Its float64 vectors re-mask a token too few at times: it computes that number in floating point."""


def hypothesis_tokens(golden: Golden, row: np.ndarray) -> list[int]:
    return [token for token in row.tolist() if token != golden.config.pad_token_id]


@pytest.mark.parametrize(("name", "precision", "beams"), AUTOREGRESSIVE)
def test_autoregressive(name: str, precision: str, beams: str) -> None:
    """All hypotheses of the reference without its cache, which is wrong."""
    golden = Golden(name)
    model, config = golden.model(dtype=DTYPES[precision]), golden.config
    source = pad_sources(golden.rows("src_tokens"), config.pad_token_id)
    found = autoregressive(model, source, AutoregressiveOptions(num_beams=int(beams)))
    exact = (
        precision == "fp64" and config.positions == "learned"
    )  # the reference's sinusoidal table is float32
    for beam in range(int(beams)):
        tokens, positional, score = (
            golden.arrays[f"{precision}/decode/ar_beam{beams}_full/hyp{beam}_{part}"]
            for part in ("tokens", "positional_scores", "score")
        )
        np.testing.assert_allclose(found.scores[:, beam], score, rtol=1e-9 if exact else 1e-5)
        for row in range(len(tokens)):
            n = int(found.lengths[row, beam])
            ours = [*found.tokens[row, beam, :n].tolist(), config.eos_token_id]
            assert ours == hypothesis_tokens(golden, tokens[row])
            np.testing.assert_allclose(
                found.token_scores[row, beam, :n],
                positional[row, :n],
                rtol=0,
                atol=1e-9 if exact else 1e-5,
            )


@pytest.mark.parametrize(("name", "precision", "max_iter", "beams"), MASK_PREDICT)
def test_mask_predict(name: str, precision: str, max_iter: str, beams: str) -> None:
    """The reference makes max_iter + 1 passes, may choose any token, and averages over bos and eos as well, with 0."""
    golden = Golden(name)
    model, config = golden.model(dtype=DTYPES[precision]), golden.config
    source = pad_sources(golden.rows("src_tokens"), config.pad_token_id)
    with torch.inference_mode():
        memory = read_sources(model, source)
        best = memory.length_logits.argmax(dim=1) - BOUNDARY_TOKENS
        lengths = candidate_lengths(best, int(beams), 0, config.max_positions - BOUNDARY_TOKENS)
        written = refine(
            model, memory, all_masked(lengths.flatten(), config), int(max_iter) + 1, forbidden=()
        )
        tokens, token_scores = (
            x.unflatten(0, lengths.shape) for x in (written.tokens, written.scores)
        )
    scores = token_scores.sum(dim=-1) / (lengths + 2)
    expected = f"{precision}/decode/mp_iter{max_iter}_beam{beams}"
    np.testing.assert_allclose(
        scores.max(dim=1).values, golden.arrays[f"{expected}/score"], rtol=0, atol=1e-5
    )
    for row, best in enumerate(scores.argmax(dim=1).tolist()):
        written = tokens[row, best, : int(lengths[row, best])].tolist()
        ours = [config.bos_token_id, *written, config.eos_token_id]
        assert ours == hypothesis_tokens(golden, golden.arrays[f"{expected}/tokens"][row])
