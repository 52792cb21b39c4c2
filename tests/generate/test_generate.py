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

from janus_pt.generate.autoregressive import AutoregressiveOptions, autoregressive
from janus_pt.generate.bang_nar import OnePassOptions, one_pass
from janus_pt.generate.constraints import forbidden_in_nar
from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.generate.mask_predict import (
    MaskPredictOptions,
    candidate_lengths,
    mask_predict,
    mean_score,
)
from janus_pt.generate.refine import all_masked, refine
from janus_pt.generate.rerank import RerankOptions, rerank
from janus_pt.generate.speculative import SpeculativeOptions, speculative
from janus_pt.inference.cpu import lay_out_for_cpu
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.janus import causal_slots, masked_slots
from janus_pt.utils.errors import UserError
from tests.support.examples import make_example_of
from tests.support.models import SPECIALS, as_source, full_pass, random_sources, tiny_model

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


def next_log_probs(
    model: JanusTransformer, source: Sequence[int], prefix: Sequence[int]
) -> np.ndarray:
    """Of the token after bos and `prefix`, from one pass over all of them."""
    target = np.array([BOS, *prefix, PAD])
    config = model.config
    parts = causal_slots(target, config)
    return full_pass(model, source, *parts)[-1].numpy()


# --- left to right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "stream"), [(0, "query"), (1, "query"), (1, "content")])
@pytest.mark.parametrize("pre_layer_norm", [False, True])
def test_the_cache_changes_nothing(pre_layer_norm: bool, offset: int, stream: str) -> None:
    model = tiny_model(
        1, pre_layer_norm=pre_layer_norm, ar_position_offset=offset, ar_stream=stream
    )
    sources = random_sources(2, 3)
    targets = np.random.default_rng(3).integers(0, 24, (3, 12))
    targets[:, 0] = BOS
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, read_sources(model, as_source(sources)))
        steps = torch.stack(
            [decoder.step(torch.from_numpy(column)) for column in targets.T[:-1]], dim=1
        )
    for row, source in enumerate(sources):
        contents, queries = causal_slots(targets[row], model.config)
        whole = full_pass(model, source, contents, queries)[-len(contents) :]
        torch.testing.assert_close(steps[row], whole, rtol=1e-12, atol=1e-12)


def test_only_content_is_cached_and_copies_share_their_source() -> None:
    model = tiny_model()
    with torch.inference_mode():
        memory = read_sources(model, as_source(random_sources(0, 2)))
        decoder = IncrementalDecoder(model, memory)
        for _ in range(4):
            decoder.step(torch.full((6,), BOS))
    for cache in decoder._caches:
        assert cache.reach == 4 and len(cache.memory[0]) == 2


@pytest.mark.parametrize("stream", ["query", "content"])
def test_a_block_is_read_as_token_by_token(stream: str) -> None:
    """From another place in each row, over what was there, and on from it step by step; buffers grow on the way."""
    model = tiny_model(3, max_positions=80, ar_position_offset=1, ar_stream=stream)
    sources, tokens = (
        as_source(random_sources(3, 2)),
        torch.from_numpy(np.random.default_rng(3).integers(5, 24, (2, 70))),
    )
    with torch.inference_mode():
        memory = read_sources(model, sources)
        stepwise = IncrementalDecoder(model, memory)
        expected = torch.stack([stepwise.step(column) for column in tokens.T], dim=1)
        decoder = IncrementalDecoder(model, memory)
        wrong = decoder.read_block(tokens[:, :9].clamp(min=7), torch.tensor([0, 0]), 9)
        assert not torch.equal(wrong, expected[:, :9])
        decoder.read_block(tokens[:, :3], torch.tensor([0, 0]), 3)
        start = torch.tensor([1, 3])
        for width in (20, 40):
            block = torch.stack(
                [tokens[row, at : at + width] for row, at in enumerate(start.tolist())]
            )
            got = decoder.read_block(block, start, int(start.max()) + width)
            for row, at in enumerate(start.tolist()):
                torch.testing.assert_close(
                    got[row], expected[row, at : at + width], rtol=0, atol=1e-12
                )
            start += width


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_naive_loop(seed: int) -> None:
    model = tiny_model(
        seed, ar_position_offset=seed % 2, ar_stream="content" if seed > 1 else "query"
    )
    sources = random_sources(seed, 4)
    options = AutoregressiveOptions(max_length=8, min_length=2)
    hypotheses = autoregressive(model, as_source(sources), options)
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
        assert (
            not hypotheses.token_scores[row, 0, n:].any()
            and (hypotheses.tokens[row, 0, n:] == PAD).all()
        )
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
        total = sum(
            next_log_probs(model, source, tokens[:i])[token] for i, token in enumerate(tokens)
        )
        outputs.append((total / len(tokens) ** penalty, list(output)))
    options = AutoregressiveOptions(num_beams=20, max_length=2, length_penalty=penalty)
    assert_same(
        found(autoregressive(model, as_source([source]), options), 0), sorted(outputs, reverse=True)
    )


def naive_beam_search(
    model: JanusTransformer, source: Sequence[int], options: AutoregressiveOptions
) -> Found:
    """The rules of fairseq's search, with lists; every step is computed from scratch."""
    beams, longest = options.num_beams, options.max_length or 0
    going: Found = [(0.0, [])]
    finished: Found = []
    for step in range(longest + 1):
        candidates = []
        for total, prefix in going:
            log_probs = next_log_probs(model, source, prefix)
            for token in (EOS, UNK, *range(SPECIALS, model.config.vocab_size)):
                if (token == EOS and step < options.min_length) or (
                    token != EOS and step == longest
                ):
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
def test_beam_search_is_the_naive_one(
    seed: int, beams: int, penalty: float, shortest: int, span: int
) -> None:
    model = tiny_model(
        seed, vocab_size=12, ar_position_offset=seed % 2, pre_layer_norm=seed % 3 == 0
    )
    sources = random_sources(seed, 2, vocab_size=12, longest=4)
    options = AutoregressiveOptions(
        num_beams=beams, length_penalty=penalty, min_length=shortest, max_length=shortest + span
    )
    hypotheses = autoregressive(model, as_source(sources), options)
    for row, source in enumerate(sources):
        assert_same(found(hypotheses, row), naive_beam_search(model, source, options))


def test_samples_follow_the_distribution() -> None:
    """First tokens of 4000 samples against the model's own probabilities, cut and sharpened."""
    model = tiny_model(18)
    (source,) = random_sources(18, 1)
    log_probs = next_log_probs(model, source, [])
    log_probs[[PAD, BOS, MASK, EOS]] = -np.inf
    for options in (
        dict(),
        dict(temperature=2.0),
        dict(top_k=3),
        dict(top_p=0.7),
        dict(top_k=9, top_p=0.9),
    ):
        scaled = log_probs / options.get("temperature", 1.0)
        order = np.argsort(-scaled)[: options.get("top_k", 24)]
        probs = np.exp(scaled[order]) / np.exp(scaled[order]).sum()
        keep = (probs.cumsum() - probs) < options.get("top_p", 1.0)
        order, probs = order[keep], probs[keep] / probs[keep].sum()
        kind = AutoregressiveOptions(
            do_sample=True, num_return_sequences=4000, max_length=1, **options
        )
        drawn = autoregressive(model, as_source([source]), kind).tokens[0, :, 0].numpy()
        counts = np.bincount(drawn, minlength=24)
        assert counts.sum() == counts[order].sum() == 4000
        assert np.abs(counts[order] / 4000 - probs).max() < 4 * 0.5 / np.sqrt(4000)


def test_samples_depend_on_the_seed_and_their_scores_on_the_model_alone() -> None:
    model, sources = tiny_model(19), random_sources(19, 3)
    options = dict(do_sample=True, num_return_sequences=3, temperature=3.0, max_length=6)
    first, again, other = (
        autoregressive(model, as_source(sources), AutoregressiveOptions(seed=seed, **options))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.tokens, again.tokens) and not torch.equal(first.tokens, other.tokens)
    for row, source in enumerate(sources):
        assert len({tuple(tokens) for _, tokens in found(first, row)}) > 1
        for score, tokens in found(first, row):
            parts = [*tokens, EOS]
            expected = [
                next_log_probs(model, source, parts[:i])[token] for i, token in enumerate(parts)
            ]
            assert score == pytest.approx(np.mean(expected))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 3), beams=st.integers(1, 3))
def test_no_ngram_is_written_twice(seed: int, size: int, beams: int) -> None:
    model = tiny_model(seed, vocab_size=24)
    options = AutoregressiveOptions(
        num_beams=beams, no_repeat_ngram_size=size, min_length=12, max_length=14
    )
    hypotheses = autoregressive(model, as_source(random_sources(seed, 3)), options)
    free = autoregressive(
        model,
        as_source(random_sources(seed, 3)),
        options.model_copy(update={"no_repeat_ngram_size": 0}),
    )
    for row in range(3):
        for _, tokens in found(hypotheses, row):
            ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
            assert len(set(ngrams)) == len(ngrams)
        tokens = found(free, row)[0][1]
        ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        if beams == 1 and len(set(ngrams)) == len(ngrams):
            assert (
                tokens == found(hypotheses, row)[0][1]
            )  # the rule changes nothing where nothing is repeated


def favour(monkeypatch: pytest.MonkeyPatch, model: JanusTransformer, tokens: list[int]) -> None:
    """Make the model want these tokens above all others, the first most."""
    bonus = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    bonus[tokens] = 1000.0 - torch.arange(len(tokens), dtype=torch.float64) * 100
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: logits(hidden) + bonus)


@pytest.mark.parametrize(("mask", "written"), [(MASK, EOS), (UNK, UNK)])
def test_pad_bos_and_mask_are_never_written(
    monkeypatch: pytest.MonkeyPatch, mask: int, written: int
) -> None:
    """Except unk where it serves as the mask symbol, as in the authors' models."""
    model = tiny_model(mask_token_id=mask)
    favour(monkeypatch, model, [PAD, BOS, mask, EOS])
    options = AutoregressiveOptions(min_length=0, max_length=3)
    hypotheses = autoregressive(model, as_source(random_sources(5, 4)), options)
    expected = [] if written == EOS else [written] * 3
    assert [found(hypotheses, row)[0][1] for row in range(4)] == [expected] * 4


# --- mask-predict ----------------------------------------------------------------------------------------------------


def naive_refine(
    model: JanusTransformer, source: Sequence[int], length: int, passes: int, adaptive: bool = False
) -> tuple[float, list[int], int]:
    """One output of a given length, in the training layout: masked positions behind the others, queries too; and the
    passes that were made."""
    target = np.array([BOS, *[MASK] * length, EOS])
    score_of: dict[int, float] = {}
    masked = list(range(1, length + 1))
    written = target.tolist()
    for done in range(1, passes + 1):
        if masked:
            target = np.array([MASK if i in masked else token for i, token in enumerate(written)])
            parts = masked_slots(target, np.array(masked), MASK)
            log_probs = full_pass(model, source, *parts)[len(target) - len(masked) : len(target)]
            for position, row in zip(masked, log_probs.numpy(), strict=True):
                words = range(SPECIALS, model.config.vocab_size)
                target[position] = max(words, key=lambda word: row[word])
                score_of[position] = row[target[position]]
        if adaptive and written == target.tolist():
            break
        written = target.tolist()
        keep = length * (passes - done) // passes
        masked = sorted(sorted(score_of, key=lambda position: score_of[position])[:keep])
    return sum(score_of.values()) / length, target[1:-1].tolist(), done


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
        candidates = [naive_refine(model, source, length, passes)[:2] for length in lengths]
        assert_same(found(hypotheses, row), sorted(candidates, key=lambda c: -c[0]))


def test_iterations_are_decoder_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(), []
    decode = model.decode_step
    monkeypatch.setattr(model, "decode_step", lambda *args: calls.append(1) or decode(*args))
    for iterations in (1, 4, 10):
        calls.clear()
        hypotheses = mask_predict(
            model, as_source(random_sources(1, 3)), MaskPredictOptions(iterations=iterations)
        )
        assert len(calls) == iterations and hypotheses.passes.tolist() == [iterations] * 3


def test_special_symbols_are_never_written_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    favour(monkeypatch, model, [PAD, BOS, EOS, UNK, MASK, 9])
    hypotheses = mask_predict(
        model, as_source(random_sources(4, 8)), MaskPredictOptions(length_beam=3)
    )
    for row in range(8):
        for _, tokens in found(hypotheses, row):
            assert tokens == [9] * len(tokens) and tokens


def test_candidate_lengths_stay_within_bounds() -> None:
    best = torch.tensor([-2, 1, 8, 17])
    assert candidate_lengths(best, 5, 1, 16).tolist() == [
        [1, 1, 1, 2, 3],
        [1, 1, 1, 2, 3],
        [6, 7, 8, 9, 10],
        [14, 15, 16, 16, 16],
    ]
    assert candidate_lengths(best, 1, 1, 30).tolist() == [[1], [1], [8], [17]]


def test_an_empty_candidate_does_not_win() -> None:
    token_scores = torch.tensor([[[0.0, 0.0], [-1.0, 0.0], [-2.0, -1.0]]])
    assert mean_score(token_scores, torch.tensor([[0, 1, 2]])).tolist() == [[-math.inf, -1.0, -1.5]]
    model = tiny_model(seed=6)
    sources = as_source(random_sources(6, 8))
    with torch.no_grad():
        model.embed_length.weight.zero_()
        model.embed_length.weight[3] = model.length_logits(model.encode(sources), sources).new_ones(
            16
        )
    options = MaskPredictOptions(length_beam=3, min_length=0, max_length=5)
    assert (mask_predict(model, sources, options).lengths[:, 0] > 0).all()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_adaptive_stopping_is_the_naive_loop(seed: int) -> None:
    """Which never returns a mask; sentences leave the batch at different times."""
    model, sources = tiny_model(seed), random_sources(seed, 4)
    with torch.no_grad():
        model.decoder.layers[
            1
        ].self_attn.out_proj.weight *= 3  # so that tokens matter to each other
    options = MaskPredictOptions(iterations=6, adaptive=True, min_length=10, max_length=14)
    hypotheses = mask_predict(model, as_source(sources), options)
    for row, source in enumerate(sources):
        score, tokens, passes = naive_refine(
            model, source, int(hypotheses.lengths[row]), 6, adaptive=True
        )
        assert_same(found(hypotheses, row), [(score, tokens)])
        assert hypotheses.passes[row] == passes


def test_all_lengths_of_a_sentence_stop_together() -> None:
    model, sources = tiny_model(11), random_sources(11, 6)
    fixed, adaptive = (
        mask_predict(
            model,
            as_source(sources),
            MaskPredictOptions(iterations=8, length_beam=3, adaptive=adaptive),
        )
        for adaptive in (False, True)
    )
    assert (adaptive.passes < 8).all()
    for row in range(6):
        assert [len(tokens) for _, tokens in found(adaptive, row)] and MASK not in adaptive.tokens[
            row
        ]
        assert {len(tokens) for _, tokens in found(adaptive, row)} == {
            len(tokens) for _, tokens in found(fixed, row)
        }


def test_rescoring_writes_every_token_anew() -> None:
    """The last pass alone decides: tokens and scores are the model's answer to what the pass read."""
    model, sources = tiny_model(12), as_source(random_sources(12, 5))
    with torch.inference_mode():
        memory = read_sources(model, sources)
        draft = all_masked(torch.tensor([3, 5, 4, 7, 2]), model.config)
        read: list[torch.Tensor] = []
        step = model.decode_step
        model.decode_step = lambda *args: read.append(step(*args)) or read[-1]  # type: ignore[method-assign]
        written = refine(model, memory, draft, 3, forbidden_in_nar(model.config), rescore_all=True)
        log_probs = model.logits(read[-1]).log_softmax(-1)[:, 1:-1]
        best = log_probs[..., SPECIALS:].max(-1)
    inside = draft.masked[:, 1:-1]
    assert len(read) == 3 and torch.equal(written.tokens[inside], (best.indices + SPECIALS)[inside])
    torch.testing.assert_close(written.scores[inside], best.values[inside], rtol=1e-9, atol=0)


def test_repeated_tokens_are_removed() -> None:
    model, sources = tiny_model(13), as_source(random_sources(13, 6))
    plain = mask_predict(model, sources, MaskPredictOptions(iterations=1, min_length=6))
    short = mask_predict(
        model, sources, MaskPredictOptions(iterations=1, min_length=6, remove_repeats=True)
    )
    assert (short.lengths < plain.lengths).any()
    for row in range(6):
        ((_, tokens),) = found(plain, row)
        kept = [i for i, token in enumerate(tokens) if i == 0 or token != tokens[i - 1]]
        assert found(short, row)[0][1] == [tokens[i] for i in kept]
        scores = plain.token_scores[row, 0, kept]
        assert torch.equal(short.token_scores[row, 0, : len(kept)], scores)
        assert not short.token_scores[row, 0, len(kept) :].any()


def test_the_length_may_come_from_the_source_or_from_p_ar() -> None:
    model, sources = tiny_model(14), random_sources(14, 6)
    by_ratio = mask_predict(
        model, as_source(sources), MaskPredictOptions(length_prediction="ratio", length_ratio=1.5)
    )
    assert by_ratio.lengths[:, 0].tolist() == [
        max(1, round((len(source) - 2) * 1.5)) for source in sources
    ]
    by_ar = mask_predict(
        model, as_source(sources), MaskPredictOptions(length_prediction="ar", iterations=3)
    )
    assert by_ar.passes.tolist() == [5] * 6
    for row, source in enumerate(sources):
        with torch.inference_mode():
            memory = read_sources(model, as_source([source]))
            head = max(1, int(memory.length_logits.argmax()) - 2)
            length = min(math.ceil(head * 1.25) + 1, 22)
            draft = naive_refine(model, source, length, 1)[1]
        ends = [next_log_probs(model, source, draft[:i])[EOS] for i in range(length + 1)]
        assert int(by_ar.lengths[row, 0]) == max(1, int(np.argmax(ends)))


# --- both with one set of weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "stream"), [(1.0, "query"), (0.3, "content")])
def test_reranking_is_by_p_ar(weight: float, stream: str) -> None:
    model, sources = tiny_model(15, ar_stream=stream), random_sources(15, 5)
    nar = mask_predict(model, as_source(sources), MaskPredictOptions(length_beam=5))
    both = rerank(model, as_source(sources), RerankOptions(ar_weight=weight))
    assert both.passes.tolist() == [5] * 5
    for row, source in enumerate(sources):
        expected = []
        for score, tokens in found(nar, row):
            parts = [*tokens, EOS]
            ar = np.mean(
                [next_log_probs(model, source, parts[:i])[token] for i, token in enumerate(parts)]
            )
            expected.append((weight * ar + (1 - weight) * score, tokens))
        assert_same(found(both, row), sorted(expected, key=lambda c: -c[0]))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    passes=st.integers(1, 3),
    block=st.sampled_from([None, 1, 3]),
    redraft_at=st.sampled_from([0, 1, 99]),
    shortest=st.integers(0, 4),
    span=st.integers(0, 17),
)
def test_speculative_decoding_is_greedy_search(
    seed: int, passes: int, block: int | None, redraft_at: int, shortest: int, span: int
) -> None:
    stream = "content" if seed % 5 < 2 else "query"
    model = tiny_model(
        seed, ar_position_offset=seed % 2, pre_layer_norm=seed % 3 == 0, ar_stream=stream
    )
    sources = random_sources(seed, 5)
    bounds = dict(min_length=shortest, max_length=max(1, shortest + span))
    greedy = autoregressive(model, as_source(sources), AutoregressiveOptions(**bounds))
    options = SpeculativeOptions(
        draft_iterations=passes, block_size=block, redraft_at=redraft_at, **bounds
    )
    drafted = speculative(model, as_source(sources), options)
    for row, source in enumerate(sources):
        assert_same(found(drafted, row), found(greedy, row))
        n = int(greedy.lengths[row])
        torch.testing.assert_close(
            drafted.token_scores[row, 0, :n], greedy.token_scores[row, 0, :n]
        )
        alone = speculative(model, as_source([source]), options)
        assert drafted.accepted is not None and drafted.drafted is not None
        for count in ("passes", "accepted", "drafted"):
            assert getattr(drafted, count)[row] == getattr(alone, count)[0]
        assert int(drafted.accepted[row]) <= n and drafted.accepted[row] <= drafted.drafted[row]


def test_a_perfect_draft_takes_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = tiny_model(16), as_source(random_sources(16, 4))
    favour(monkeypatch, model, [9])
    hypotheses = speculative(model, sources, SpeculativeOptions(max_length=7, min_length=7))
    assert hypotheses.drafted is not None and hypotheses.accepted is not None
    assert hypotheses.tokens[:, 0].tolist() == [[9] * 7] * 4
    assert hypotheses.passes.tolist() == [2] * 4
    assert hypotheses.accepted.tolist() == hypotheses.drafted.tolist() == [7] * 4


def test_sentences_may_go_on_long_after_the_predicted_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = tiny_model(16, max_positions=120), as_source(random_sources(16, 3))
    favour(monkeypatch, model, [9])
    hypotheses = speculative(model, sources, SpeculativeOptions(max_length=100))
    assert hypotheses.tokens[:, 0].tolist() == [[9] * 100] * 3
    assert hypotheses.drafted is not None and (hypotheses.drafted < 30).all()


def test_lossy_decoding_keeps_what_is_near_enough() -> None:
    """With no margin it is greedy search; with all margin it is the draft, which has the predicted length."""
    model, sources = tiny_model(17), as_source(random_sources(17, 6))
    greedy = autoregressive(model, sources, AutoregressiveOptions(max_length=10))
    strict = speculative(
        model, sources, SpeculativeOptions(max_length=10, lossy=True, lossy_margin=0.0)
    )
    for row in range(6):
        assert_same(found(strict, row), found(greedy, row))
    all_of_it = SpeculativeOptions(max_length=10, lossy=True, lossy_margin=1e9, lossy_top_k=24)
    loose = speculative(model, sources, all_of_it)
    nar = mask_predict(model, sources, MaskPredictOptions(iterations=1, max_length=10))
    assert loose.drafted is not None and loose.accepted is not None
    assert torch.equal(loose.accepted, loose.drafted)
    for row in range(6):
        n = int(nar.lengths[row, 0])
        assert loose.tokens[row, 0, :n].tolist() == nar.tokens[row, 0, :n].tolist()


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        (autoregressive, AutoregressiveOptions(max_length=10)),
        (autoregressive, AutoregressiveOptions(num_beams=3, max_length=10)),
        (
            autoregressive,
            AutoregressiveOptions(do_sample=True, num_return_sequences=2, max_length=10, seed=3),
        ),
        (autoregressive, AutoregressiveOptions(no_repeat_ngram_size=2, max_length=10)),
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
        autoregressive(model, source, AutoregressiveOptions(max_length=23))
    with pytest.raises(UserError, match=r"max_length: 23 "):
        mask_predict(model, source, MaskPredictOptions(max_length=23))
    with pytest.raises(UserError, match=r"min_length: 5 .* 4"):
        mask_predict(model, source, MaskPredictOptions(min_length=5, max_length=4))
    for decoder, kind in (
        (autoregressive, AutoregressiveOptions),
        (mask_predict, MaskPredictOptions),
    ):
        assert (decoder(model, source, kind(min_length=22)).lengths == 22).all()
        assert (decoder(model, source, kind(max_length=1)).lengths == 1).all()
    offset = tiny_model(ar_position_offset=0)
    assert (
        autoregressive(offset, source, AutoregressiveOptions(min_length=23)).lengths == 23
    ).all()


def test_bfloat16_scores_are_float32() -> None:
    model, source = tiny_model(dtype=torch.bfloat16), as_source(random_sources(1, 2))
    assert (
        autoregressive(model, source, AutoregressiveOptions(num_beams=2, max_length=5)).scores.dtype
        is torch.float32
    )
    assert mask_predict(model, source, MaskPredictOptions()).scores.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_for_a_cpu_changes_neither_weights_nor_results(dtype: torch.dtype) -> None:
    plain, laid_out = tiny_model(dtype=dtype), tiny_model(dtype=dtype)
    lay_out_for_cpu(laid_out)
    theirs = laid_out.state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in plain.state_dict().items())
    source, parts = random_sources(7, 1)[0], causal_slots(np.array([BOS, 9, 8, 7]), plain.config)
    ours, without = (full_pass(model, source, *parts) for model in (laid_out, plain))
    exact = full_pass(plain.double(), source, *parts)
    rounding = max(torch.finfo(dtype).eps, float((without - exact).abs().max()))
    assert 0 < (ours - exact).abs().max() < 2 * rounding


# --- one pass to eos -------------------------------------------------------------------------------------------------


def plain_one_pass(
    model: JanusTransformer, source: list[int], shortest: int, longest: int, remove_repeats: bool
) -> tuple[float, list[int]]:
    """From the slots that the objective trains on, token by token."""
    target = np.full(longest + 2, PAD)
    slots = make_example_of(
        "bang_nar",
        np.array(source),
        target,
        position_offset=model.config.ar_position_offset,
    ).content
    log_probs = full_pass(model, source, slots).numpy()
    tokens, scores = [], []
    for place in range(longest + 1):
        allowed = [t for t in range(24) if t >= SPECIALS or (t == EOS and place >= shortest)]
        best = max(allowed, key=lambda token: log_probs[place, token])
        if place == longest and best != EOS:
            break
        scores.append(log_probs[place, best])
        if best == EOS:
            break
        tokens.append(best)
    score = sum(scores) / len(scores)
    if remove_repeats:
        tokens = [
            token for place, token in enumerate(tokens) if place == 0 or token != tokens[place - 1]
        ]
    return score, tokens


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("remove_repeats", [False, True])
def test_one_pass_against_plain(offset: int, remove_repeats: bool) -> None:
    ended = cut = 0
    for seed in range(8):
        model = tiny_model(seed, ar_position_offset=offset)
        with torch.no_grad():
            model.embed_tokens.weight[EOS] *= 1.5  # likelier than most
        sources = random_sources(seed, 4)
        options = OnePassOptions(
            masks_per_token=0.9, max_length=8, min_length=2, remove_repeats=remove_repeats
        )
        result = one_pass(model, as_source(sources), options)
        for row, source in enumerate(sources):
            longest = min(8, max(2, math.ceil(0.9 * len(source))))
            expected = plain_one_pass(model, source, 2, longest, remove_repeats)
            assert_same(found(result, row), [expected])
            _, whole = plain_one_pass(model, source, 2, longest, False)
            ended += len(whole) < longest
            cut += len(whole) == longest
    assert ended and cut and result.passes.tolist() == [1] * 4
