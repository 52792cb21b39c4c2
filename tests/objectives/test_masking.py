"""Noise against the authors' statistics, and against their very draws replayed through torch's generator."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives import masking as noise
from janus_pt.objectives.examples import make_example
from tests.support.goldens import DENOISING, ROOT, needs_goldens

MASK = 4


@given(st.integers(0, 2**32), st.integers(1, 200), st.floats(0.3, 8.0))
def test_span_lengths_fill_the_budget(seed: int, budget: int, mean: float) -> None:
    lengths = noise.span_lengths(np.random.default_rng(seed), budget, mean)
    assert lengths.sum() == budget and lengths.min() >= 0 and lengths[-1] > 0


@given(st.integers(0, 2**32), st.integers(2, 80), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_infill_keeps_what_the_decoder_is_not_asked(
    seed: int, length: int, visible: float, rotate: float
) -> None:
    target = (
        np.concatenate(([1], np.arange(10, 8 + length), [2])) if length > 2 else np.array([1, 2])
    )
    source, masked = noise.infill(
        np.random.default_rng(seed), target, MASK, 0.3, 3.0, visible, rotate, 100
    )
    assert source[0] == 1 and source[-1] == 2 and len(source) <= 100
    assert np.all(np.diff(masked) > 0) and set(masked) <= set(range(1, length - 1))
    kept = np.delete(target, masked)
    assert set(kept) <= set(source), "a token that is not masked for the decoder was lost"
    if visible == 1.0:
        assert np.array_equal(np.sort(source[source != MASK]), np.sort(target))
    if rotate == 0.0:
        inside = source[(source > 4)]
        assert np.all(np.diff(inside) > 0), "order of the visible tokens"


@given(st.integers(0, 2**32), st.integers(2, 60))
def test_uniform_mask_is_inside(seed: int, length: int) -> None:
    masked = noise.uniform_mask(np.random.default_rng(seed), length)
    assert len(set(masked)) == len(masked) and set(masked) <= set(range(1, length - 1))
    assert len(masked) >= min(1, length - 2)


def test_uniform_mask_reaches_every_count() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([len(noise.uniform_mask(rng, 7)) for _ in range(5000)], minlength=6)[1:]
    assert np.all(np.abs(counts - 1000) < 5 * math.sqrt(1000))


@needs_goldens
@pytest.mark.parametrize("length", [3, 4, 8, 16, 32, 128])
def test_span_mask_has_the_reference_statistics(length: int) -> None:
    expected = json.loads((ROOT / "mt_mask_stats.json").read_text())[str(length)]
    rng = np.random.default_rng(length)
    shares = np.array(
        [len(noise.span_mask(rng, length, 0.7, 2.0)) / (length - 2) for _ in range(3000)]
    )
    error = expected["std"] * (1 / math.sqrt(3000) + 1 / math.sqrt(expected["n"]))
    assert abs(shares.mean() - expected["mean_fraction_of_inner"]) < 4 * error
    assert abs((shares == 0).mean() - expected["p_none"]) < 0.04
    assert abs((shares == 1).mean() - expected["p_all"]) < 0.04


def poisson_table(mean: float) -> torch.Tensor:
    """The reference's truncated Poisson distribution: cut below 1e-7."""
    table = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(128)]
    table = table[: next(k for k, p in enumerate(table) if p < 1e-7) + 1]
    return torch.tensor(table)


@needs_goldens
def test_replacement_replays_the_reference() -> None:
    """Their draws, from torch's generator seeded as theirs, through our writing of spans and insertions."""
    for name in DENOISING:
        arrays = np.load(ROOT / f"{name}.npz", allow_pickle=False)
        mask = json.loads((ROOT / "config.json").read_text())[name]["ids"]["mask"]
        torch.manual_seed(1234)
        distribution = torch.distributions.Categorical(poisson_table(3.0))
        for sample in range(4):
            original = arrays[f"sample{sample}/original"]
            inner = len(original) - 2
            budget = math.ceil(0.3 * inner)
            lengths = distribution.sample((budget,))
            while lengths.cumsum(0)[-1] < budget:
                lengths = torch.cat((lengths, distribution.sample((budget,))))
            total = lengths.cumsum(0)
            last = int(torch.nonzero(total >= budget)[0])
            lengths = lengths[: last + 1].clone()
            lengths[last] -= total[last] - budget
            inserted = int((lengths == 0).sum())
            spans = lengths[lengths > 0].numpy()
            starts = torch.randperm(inner)[: len(spans)].numpy() + 1
            readable = (torch.empty(len(spans)).uniform_() < 0.5).numpy()
            ends = np.minimum(starts + spans, len(original) - 1)
            body = noise._replace_spans(original, mask, starts, ends, readable)
            source = arrays[f"sample{sample}/source"]
            masked = noise._covered(starts, ends, len(original))
            assert np.array_equal(masked, arrays[f"sample{sample}/nar_query_p"])
            assert len(source) == len(body) + inserted
            if inserted:
                torch.randperm(len(body) + inserted - 2)
            without = source[source != mask]
            assert sorted(without) == sorted(body[body != mask])


@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.sampled_from(["span", "uniform", "infill"]),
    st.floats(0, 1),
)
def test_a_full_mask_replaces_the_drawn_one_and_nothing_else(
    seed: int, length: int, kind: str, share: float
) -> None:
    """The source and, where the mask is not full, the mask are those of a mixture without full masks."""
    names = ("text",) if kind == "infill" else ("source", "target")
    fields = {name: np.arange(10, 10 + length) for name in names}
    model = ModelConfig(vocab_size=60)
    plain, mixed, full = (
        make_example(
            fields,
            np.random.default_rng(seed),
            model=model,
            objective=ObjectiveConfig.model_validate(
                {
                    "name": "cmlm",
                    "recipe": "translation",
                    "masking": {"kind": kind, "full_share": float(part)},
                }
            ),
        )
        for part in (0, share, 1)
    )
    for made in (mixed, full):
        assert np.array_equal(made.source, plain.source)
    masked = [sorted(made.targets[: len(made.predict["nar"])]) for made in (plain, mixed, full)]
    assert masked[2] == list(range(10, 10 + length)) and masked[1] in (masked[0], masked[2])


def test_suffix_masks_keep_a_uniform_number_of_tokens() -> None:
    rng, length = np.random.default_rng(1), 12
    counts = np.zeros(length - 2)
    for _ in range(5000):
        masked = noise.suffix_mask(rng, length)
        # Everything behind the cut, but never eos.
        assert masked.tolist() == list(range(masked[0], length - 1)) and masked[0] >= 1
        counts[masked[0] - 1] += 1
    # Pearson's statistic of ten equally probable cuts: 27.9 has probability 0.001.
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
    assert len(noise.suffix_mask(rng, 2)) == 0, "an empty text has nothing to mask"


def test_the_shares_of_full_and_suffix_masks() -> None:
    """More masked tokens than spans of this share ever cover are a suffix."""
    rng, fields = np.random.default_rng(2), {"source": np.full(30, 7), "target": np.arange(7, 37)}
    masking = {"kind": "span", "ratio": 0.1, "full_share": 0.2, "suffix_share": 0.5}
    objective = ObjectiveConfig.model_validate(
        {"name": "cmlm", "recipe": "translation", "masking": masking}
    )
    full = suffix = 0
    for _ in range(2000):
        made = make_example(fields, rng, model=ModelConfig(vocab_size=60), objective=objective)
        masked = sorted(made.targets[: len(made.predict["nar"])])
        full += len(masked) == 30
        suffix += 10 < len(masked) < 30 and masked == list(range(masked[0], 37))
    for count, expected in ((full, 0.2 + 0.5 / 30), (suffix, 0.5 * 19 / 30)):
        assert abs(count / 2000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


def test_shares_above_one_are_refused() -> None:
    masking = {"full_share": 0.6, "suffix_share": 0.5}
    with pytest.raises(ValidationError, match="together at most 1"):
        ObjectiveConfig.model_validate({"recipe": "translation", "masking": masking})


def test_the_share_of_full_masks() -> None:
    """Drawn by the share, and by chance otherwise: of n tokens uniform masks are full in one of n."""
    rng, fields = np.random.default_rng(1), {"source": np.full(8, 7), "target": np.full(8, 7)}
    objective = ObjectiveConfig.model_validate(
        {"name": "cmlm", "recipe": "translation", "masking": {"full_share": 0.25}}
    )
    full = [
        len(
            make_example(
                fields, rng, model=ModelConfig(vocab_size=60), objective=objective
            ).predict["nar"]
        )
        == 8
        for _ in range(4000)
    ]
    expected = 0.25 + 0.75 / 8
    assert abs(np.mean(full) - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
