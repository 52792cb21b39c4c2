"""Decoding on random tiny models, against plain loops that share no code with it and keep no cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPECIALS, as_source, full_pass, random_sources, tiny_model

from janus_pt.errors import UserError
from janus_pt.generate.autoregressive import AutoregressiveOptions, beam_search
from janus_pt.generate.cache import IncrementalDecoder
from janus_pt.generate.mask_predict import MaskPredictOptions, candidate_lengths, mask_predict, mean_score
from janus_pt.generate.types import Hypotheses
from janus_pt.model.janus import JanusTransformer
from janus_pt.objectives.janus import causal_slots, masked_slots

PAD, BOS, EOS, UNK, MASK = range(SPECIALS)
Found = list[tuple[float, list[int]]]
"""Score and tokens of a sentence's hypotheses, best first."""


def found(hypotheses: Hypotheses, row: int) -> Found:
    scores, lengths = hypotheses.scores[row].tolist(), hypotheses.lengths[row].tolist()
    tokens = hypotheses.tokens[row].tolist()
    return [(s, t[:n]) for s, t, n in zip(scores, tokens, lengths, strict=True) if s > -math.inf]


def assert_same(ours: Found, theirs: Found) -> None:
    assert [tokens for _, tokens in ours] == [tokens for _, tokens in theirs]
    np.testing.assert_allclose([s for s, _ in ours], [s for s, _ in theirs], rtol=1e-9)


def next_log_probs(model: JanusTransformer, source: Sequence[int], prefix: Sequence[int]) -> np.ndarray:
    """Of the token after bos and `prefix`, from one pass over all of them."""
    target = np.array([BOS, *prefix, PAD])
    parts = causal_slots(target, model.config.mask_token_id, model.config.ar_position_offset)
    return full_pass(model, source, *parts)[-1].numpy()


# --- left to right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("pre_layer_norm", [False, True])
def test_the_cache_changes_nothing(pre_layer_norm: bool, offset: int) -> None:
    model = tiny_model(1, pre_layer_norm=pre_layer_norm, ar_position_offset=offset)
    sources = random_sources(2, 3)
    targets = np.random.default_rng(3).integers(0, 24, (3, 12))
    targets[:, 0] = BOS
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, as_source(sources))
        steps = torch.stack([decoder.step(torch.from_numpy(column)) for column in targets.T[:-1]], dim=1)
    for row, source in enumerate(sources):
        contents, queries = causal_slots(targets[row], MASK, offset)
        whole = full_pass(model, source, contents, queries)[len(contents) :]
        torch.testing.assert_close(steps[row], whole, rtol=0, atol=1e-12)


def test_only_content_is_cached_and_the_source_once() -> None:
    model = tiny_model()
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, as_source(random_sources(0, 2)), copies=3)
        for _ in range(4):
            decoder.step(torch.full((6,), BOS))
    for cache in decoder._caches:
        assert cache.content is not None and cache.memory is not None
        assert cache.content[0].shape[2] == 4
        assert cache.memory[0].shape[0] == 6


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_naive_loop(seed: int) -> None:
    model = tiny_model(seed, ar_position_offset=seed % 2)
    sources = random_sources(seed, 4)
    options = AutoregressiveOptions(max_length=8, min_length=2)
    hypotheses = beam_search(model, as_source(sources), options)
    for row, source in enumerate(sources):
        prefix: list[int] = []
        scores: list[float] = []
        while True:
            log_probs = next_log_probs(model, source, prefix)
            score_of = {token: log_probs[token] for token in (EOS, UNK, *range(SPECIALS, 24))}
            if len(prefix) < 2:
                del score_of[EOS]
            token = EOS if len(prefix) == 8 else max(score_of, key=lambda t: score_of[t])
            scores.append(log_probs[token])
            if token == EOS:
                break
            prefix.append(token)
        assert_same(found(hypotheses, row), [(sum(scores) / len(scores), prefix)])
        n = len(prefix)
        np.testing.assert_allclose(hypotheses.token_scores[row, 0, :n], scores[:-1], rtol=1e-9)
        assert not hypotheses.token_scores[row, 0, n:].any() and (hypotheses.tokens[row, 0, n:] == PAD).all()
        assert hypotheses.passes[row] == n + 1


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_a_beam_wide_enough_finds_every_output(penalty: float) -> None:
    """Vocabulary of unk, three words and eos, at most two tokens: 4 + 16 outputs."""
    model = tiny_model(7, vocab_size=8)
    source = random_sources(7, 1, vocab_size=8)[0]
    words = [UNK, 5, 6, 7]
    outputs: Found = []
    for output in [*itertools.product(words), *itertools.product(words, words)]:
        tokens = [*output, EOS]
        total = sum(next_log_probs(model, source, tokens[:i])[token] for i, token in enumerate(tokens))
        outputs.append((total / len(tokens) ** penalty, list(output)))
    options = AutoregressiveOptions(num_beams=20, max_length=2, length_penalty=penalty)
    assert_same(found(beam_search(model, as_source([source]), options), 0), sorted(outputs, reverse=True))


def naive_beam_search(model: JanusTransformer, source: Sequence[int], options: AutoregressiveOptions) -> Found:
    """The rules of fairseq's search, with lists; every step is computed from scratch."""
    beams, longest = options.num_beams, options.max_length or 0
    going: Found = [(0.0, [])]
    finished: Found = []
    for step in range(longest + 1):
        candidates = []
        for total, prefix in going:
            log_probs = next_log_probs(model, source, prefix)
            for token in (EOS, UNK, *range(SPECIALS, model.config.vocab_size)):
                if (token == EOS and step < options.min_length) or (token != EOS and step == longest):
                    continue
                candidates.append((total + log_probs[token], [*prefix, token]))
        candidates.sort(reverse=True)
        for total, tokens in candidates[:beams]:
            if tokens[-1] == EOS and len(finished) < beams:
                finished.append((total / len(tokens) ** options.length_penalty, tokens[:-1]))
        if len(finished) == beams:
            break
        going = [c for c in candidates[: 2 * beams] if c[1][-1] != EOS][:beams]
    return sorted(finished, reverse=True)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beams=st.integers(1, 4),
    penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    shortest=st.integers(0, 3),
    span=st.integers(1, 3),
)
def test_beam_search_is_the_naive_one(seed: int, beams: int, penalty: float, shortest: int, span: int) -> None:
    model = tiny_model(seed, vocab_size=12, ar_position_offset=seed % 2, pre_layer_norm=seed % 3 == 0)
    sources = random_sources(seed, 2, vocab_size=12, longest=4)
    options = AutoregressiveOptions(
        num_beams=beams, length_penalty=penalty, min_length=shortest, max_length=shortest + span
    )
    hypotheses = beam_search(model, as_source(sources), options)
    for row, source in enumerate(sources):
        assert_same(found(hypotheses, row), naive_beam_search(model, source, options))


def favour(monkeypatch: pytest.MonkeyPatch, model: JanusTransformer, tokens: list[int]) -> None:
    """Make the model want these tokens above all others, the first most."""
    bonus = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    bonus[tokens] = 1000.0 - torch.arange(len(tokens), dtype=torch.float64) * 100
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: logits(hidden) + bonus)


@pytest.mark.parametrize(("mask", "written"), [(MASK, EOS), (UNK, UNK)])
def test_pad_bos_and_mask_are_never_written(monkeypatch: pytest.MonkeyPatch, mask: int, written: int) -> None:
    """Except unk where it serves as the mask symbol, as in the authors' models."""
    model = tiny_model(mask_token_id=mask)
    favour(monkeypatch, model, [PAD, BOS, mask, EOS])
    options = AutoregressiveOptions(min_length=0, max_length=3)
    hypotheses = beam_search(model, as_source(random_sources(5, 4)), options)
    expected = [] if written == EOS else [written] * 3
    assert [found(hypotheses, row)[0][1] for row in range(4)] == [expected] * 4


# --- mask-predict ----------------------------------------------------------------------------------------------------


def naive_refine(model: JanusTransformer, source: Sequence[int], length: int, passes: int) -> tuple[float, list[int]]:
    """One output of a given length, in the training layout: masked positions behind the others, queries too."""
    target = np.array([BOS, *[MASK] * length, EOS])
    score_of: dict[int, float] = {}
    masked = list(range(1, length + 1))
    for done in range(1, passes + 1):
        if masked:
            parts = masked_slots(target, np.array(masked), MASK)
            log_probs = full_pass(model, source, *parts)[len(target) - len(masked) : len(target)]
            for position, row in zip(masked, log_probs.numpy(), strict=True):
                words = range(SPECIALS, model.config.vocab_size)
                target[position] = max(words, key=lambda word: row[word])
                score_of[position] = row[target[position]]
        keep = length * (passes - done) // passes
        masked = sorted(sorted(score_of, key=lambda position: score_of[position])[:keep])
    return sum(score_of.values()) / length, target[1:-1].tolist()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), passes=st.integers(1, 6), beam=st.integers(1, 4))
def test_mask_predict_is_the_naive_loop(seed: int, passes: int, beam: int) -> None:
    model = tiny_model(seed, pre_layer_norm=seed % 2 == 0)
    sources = random_sources(seed, 3)
    options = MaskPredictOptions(iterations=passes, length_beam=beam, max_length=12)
    hypotheses = mask_predict(model, as_source(sources), options)
    for row, source in enumerate(sources):
        batch = as_source([source])
        with torch.no_grad():
            best = int(model.length_logits(model.encode(batch), batch).argmax()) - 2
        center = min(max(best, 1), 12)
        lengths = [min(max(center + i - beam // 2, 1), 12) for i in range(beam)]
        candidates = [naive_refine(model, source, length, passes) for length in lengths]
        assert_same(found(hypotheses, row), sorted(candidates, key=lambda c: -c[0]))


def test_iterations_are_decoder_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda *args: calls.append(1) or decode(*args))
    for iterations in (1, 4, 10):
        calls.clear()
        hypotheses = mask_predict(model, as_source(random_sources(1, 3)), MaskPredictOptions(iterations=iterations))
        assert len(calls) == iterations and hypotheses.passes.tolist() == [iterations] * 3


def test_special_symbols_are_never_written_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    favour(monkeypatch, model, [PAD, BOS, EOS, UNK, MASK, 9])
    hypotheses = mask_predict(model, as_source(random_sources(4, 8)), MaskPredictOptions(length_beam=3))
    for row in range(8):
        for _, tokens in found(hypotheses, row):
            assert tokens == [9] * len(tokens) and tokens


def test_candidate_lengths_stay_within_bounds() -> None:
    """Classes count bos and eos."""
    logits = torch.eye(20)[[0, 3, 10, 19]]
    assert candidate_lengths(logits, 5, 1, 16).tolist() == [
        [1, 1, 1, 2, 3],
        [1, 1, 1, 2, 3],
        [6, 7, 8, 9, 10],
        [14, 15, 16, 16, 16],
    ]
    assert candidate_lengths(logits, 1, 1, 30).tolist() == [[1], [1], [8], [17]]


def test_an_empty_candidate_does_not_win() -> None:
    token_scores = torch.tensor([[[0.0, 0.0], [-1.0, 0.0], [-2.0, -1.0]]])
    assert mean_score(token_scores, torch.tensor([[0, 1, 2]])).tolist() == [[-math.inf, -1.0, -1.5]]
    model = tiny_model(seed=6)
    sources = as_source(random_sources(6, 8))
    with torch.no_grad():
        model.embed_length.weight.zero_()
        model.embed_length.weight[3] = model.length_logits(model.encode(sources), sources).new_ones(16)
    options = MaskPredictOptions(length_beam=3, min_length=0, max_length=5)
    assert (mask_predict(model, sources, options).lengths[:, 0] > 0).all()


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        (beam_search, AutoregressiveOptions(max_length=10)),
        (beam_search, AutoregressiveOptions(num_beams=3, max_length=10)),
        (mask_predict, MaskPredictOptions(length_beam=3)),
    ],
)
def test_a_sentence_does_not_feel_its_batch(decoder, options) -> None:  # type: ignore[no-untyped-def]
    model, sources = tiny_model(9), random_sources(9, 7)
    together = decoder(model, as_source(sources), options)
    for row, source in enumerate(sources):
        alone = decoder(model, as_source([source]), options)
        assert_same(found(together, row), found(alone, 0))
        assert together.passes[row] == alone.passes[0]


def test_bounds_on_the_length_are_checked_and_kept() -> None:
    model, source = tiny_model(), as_source(random_sources(1, 2))
    with pytest.raises(UserError, match=r"max_length: 23 is more than the 22 tokens"):
        beam_search(model, source, AutoregressiveOptions(max_length=23))
    with pytest.raises(UserError, match=r"max_length: 23 "):
        mask_predict(model, source, MaskPredictOptions(max_length=23))
    with pytest.raises(UserError, match=r"min_length: 5 .* 4"):
        mask_predict(model, source, MaskPredictOptions(min_length=5, max_length=4))
    for decoder, kind in ((beam_search, AutoregressiveOptions), (mask_predict, MaskPredictOptions)):
        assert (decoder(model, source, kind(min_length=22)).lengths == 22).all()
        assert (decoder(model, source, kind(max_length=1)).lengths == 1).all()
    offset = tiny_model(ar_position_offset=0)
    assert (beam_search(offset, source, AutoregressiveOptions(min_length=23)).lengths == 23).all()


def test_bfloat16_scores_are_float32() -> None:
    model, source = tiny_model(dtype=torch.bfloat16), as_source(random_sources(1, 2))
    assert beam_search(model, source, AutoregressiveOptions(num_beams=2, max_length=5)).scores.dtype is torch.float32
    assert mask_predict(model, source, MaskPredictOptions()).scores.dtype is torch.float32
