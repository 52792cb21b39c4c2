"""The rival objectives: what each slot may read, written out by hand for a target of five tokens;
losses by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from janus_pt.checks import limit_problems
from janus_pt.config.content import validate
from janus_pt.config.objectives import OBJECTIVES as ROWS
from janus_pt.config.objectives import weight_names
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.masks import readable
from janus_pt.objectives import cmlmc
from janus_pt.objectives.base import MaskedPair
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.janus import visible_slots
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch, Example, collate
from janus_pt.packing.row_layout import pack_row
from janus_pt.packing.slots import POSITION, SEGMENT, TOKEN
from tests.support.examples import build_example
from tests.support.models import full_pass, tiny_model

BOS, EOS, MASK = 1, 2, 4
TARGET = np.array([BOS, 10, 11, 12, EOS])
SOURCE = np.array([BOS, 20, 21, EOS])
MASKED = np.array([1, 3])
NONE = np.empty(0, dtype=int)
PAIR = MaskedPair(SOURCE, TARGET, MASKED)
MODEL = ModelConfig(vocab_size=24, ar_position_offset=1)


def objective(name: str, **given: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"name": name, "recipe": "translation", **given})


def example(name: str, **given: Any) -> Example:
    pair = MaskedPair(SOURCE, TARGET, MASKED, chosen=np.array([2]) if name == "cmlmc" else NONE)
    return build_example(pair, MODEL, objective(name, **given))


def table(made: Example) -> list[str]:
    """Row by row which content slots a slot reads, as 1 and a point."""
    slots = collate([made]).slots
    places = torch.from_numpy(pack_row([made]).positions[0])
    in_order = slots.table[0, places]
    mask = readable(in_order, in_order[: len(made.content)])
    return [
        "".join("1" if seen else "." for seen in row[: len(made.content)].tolist()) for row in mask
    ]


def predicted(made: Example, stream: str) -> list[tuple[int, int]]:
    """(token, position of the slot) for every slot of a stream, by position."""
    slots = np.concatenate((made.content, made.query))
    index = made.predict[stream]
    assert (slots[index, TOKEN] == MASK).all()
    return sorted(
        zip(made.targets[: len(index)].tolist(), slots[index, POSITION].tolist(), strict=True),
        key=lambda pair: pair[1],
    )


def test_ar() -> None:
    made = example("ar")
    #                     bos 10 11 12
    assert table(made) == ["1...", "11..", "111.", "1111"] * 2
    assert made.content[:, TOKEN].tolist() == [BOS, 10, 11, 12]
    assert predicted(made, "ar") == [(10, 1), (11, 2), (12, 3), (EOS, 4)]


def test_cmlm() -> None:
    """bos, 11 and eos are seen, 10 and 12 are mask symbols: all read all."""
    made = example("cmlm")
    assert table(made) == ["11111"] * 5 and len(made.query) == 0
    assert made.content[:, [TOKEN, POSITION]].tolist() == [
        [BOS, 0],
        [11, 2],
        [EOS, 4],
        [MASK, 1],
        [MASK, 3],
    ]
    assert predicted(made, "nar") == [(10, 1), (12, 3)]
    assert sorted(made.targets.tolist()) == [EOS, 10, 11, 12], (
        "tokens are counted as in every other objective"
    )


def test_cmlmc() -> None:
    """CMLM's slots, and all positions again, of which 11 is to be corrected. Neither half reads the
    other."""
    made = example("cmlmc")
    assert table(made) == ["11111....."] * 5 + [".....11111"] * 5 and len(made.query) == 0
    assert made.content[:5].tolist() == example("cmlm").content.tolist()
    assert made.content[5:, [TOKEN, POSITION]].tolist() == [
        [BOS, 0], [MASK, 1], [cmlmc.UNWRITTEN, 2], [MASK, 3], [EOS, 4]
    ]  # fmt: skip
    assert predicted(made, "nar") == [(10, 1), (12, 3)]
    assert made.predict["corrected"].tolist() == [7] and made.targets.tolist() == [10, 12, EOS, 11]


def test_joint() -> None:
    """Contents: bos 10 11 12 | bos 11 eos, masks of 10 and 12. Neither half reads the other."""
    made = example("joint")
    assert table(made) == [
        "1........", "11.......", "111......", "1111.....",
        *["....11111"] * 5,
        "1........", "11.......", "111......", "1111.....",
    ]  # fmt: skip
    assert predicted(made, "ar") == [(10, 1), (11, 2), (12, 3), (EOS, 4)]
    assert predicted(made, "nar") == [(10, 1), (12, 3)]
    assert made.targets[:2].tolist() == [10, 12], (
        "the masked come first: J compares the same tokens"
    )


CONTENT = MODEL.model_copy(update={"ar_stream": "content"})


@pytest.mark.parametrize("name", ["ar", "joint", "janus"])
def test_without_ar_queries_the_contents_predict(name: str) -> None:
    """The slots are the same but for the queries; P_AR of a token is the content before it."""
    made = build_example(PAIR, CONTENT, objective(name))
    other = example(name)
    np.testing.assert_array_equal(made.content, other.content)
    np.testing.assert_array_equal(made.query, other.query[4:])
    np.testing.assert_array_equal(made.targets, other.targets)
    slots = made.content[made.predict["ar"]]
    pairs = zip(
        made.targets.tolist(), slots[:, TOKEN].tolist(), slots[:, POSITION].tolist(), strict=True
    )
    assert sorted(pairs, key=lambda pair: pair[2]) == [
        (10, BOS, 1),
        (11, 10, 2),
        (12, 11, 3),
        (EOS, 12, 4),
    ]
    for stream in made.predict.keys() - {"ar"}:
        chosen, theirs = (
            np.concatenate((e.content, e.query))[e.predict[stream]] for e in (made, other)
        )
        np.testing.assert_array_equal(chosen, theirs)


def test_bang() -> None:
    """Three streams. Contents: the true tokens, then the slots of each diagonal d, which reads the
    tokens 0 … d.

    A slot is written as what it predicts and, behind it, how many tokens before that are hidden.
    """
    made = example("bang", bang_streams=3)
    #   bos 10 11 12 | d=0: 10/0 11/1 12/2 | d=1: 11/0 12/1 eos/2 | d=2: 12/0 eos/1 | d=3: eos/0
    expected = [
        "1... ... ... .. .", "11.. ... ... .. .", "111. ... ... .. .", "1111 ... ... .. .",
        "1... 1.. ... .. .", "1... 11. ... .. .", "1... 111 ... .. .",
        "11.. ... 1.. .. .", "11.. ... 11. .. .", "11.. ... 111 .. .",
        "111. ... ... 1. .", "111. ... ... 11 .",
        "1111 ... ... .. 1",
    ]  # fmt: skip
    assert table(made) == [row.replace(" ", "") for row in expected]
    assert predicted(made, "ar") == [(10, 1), (11, 2), (12, 3), (EOS, 4)]
    assert predicted(made, "hidden1") == [(11, 2), (12, 3), (EOS, 4)]
    assert predicted(made, "hidden2") == [(12, 3), (EOS, 4)]


def test_bang_nar() -> None:
    """Mask symbols alone, each reads itself and those before."""
    made = example("bang_nar")
    assert table(made) == ["1...", "11..", "111.", "1111"]
    assert predicted(made, "nar") == [(10, 1), (11, 2), (12, 3), (EOS, 4)]


# --- losses
# ----------------------------------------------------------------------------------------------------------

NAMES = {
    "janus": [
        "loss/ar",
        "loss/nar",
        "loss/aux",
        "kl/ar_aux",
        "kl/aux_nar",
        "kl/ar_nar",
        "loss/length",
    ],
    "ar": ["loss/ar", "loss/length"],
    "cmlm": ["loss/nar", "loss/length"],
    "cmlmc": ["loss/nar", "loss/corrected", "loss/length"],
    "joint": ["loss/ar", "loss/nar", "kl/ar_nar", "loss/length"],
    "bang": ["loss/ar", "loss/hidden1", "loss/hidden2", "loss/length"],
    "bang_nar": ["loss/nar", "loss/length"],
    "ctc": ["loss/ctc", "loss/length"],
}
BY_SLOT = [name for name in OBJECTIVES if OBJECTIVES[name].alignment_loss is None]
"""Objectives whose slots predict a token each."""


def batch(name: str) -> Batch:
    """Three pairs of different lengths; one has a single token."""
    rng = np.random.default_rng(0)
    config = objective(name, bang_streams=3)
    sizes = (4, 12), (3, 1), (2, 9)
    fields = [
        {"source": rng.integers(5, 24, n), "target": rng.integers(5, 24, m)} for n, m in sizes
    ]
    shape = tiny_model().config
    examples = [make_example(f, rng, model=shape, objective=config) for f in fields]
    return collate_examples(examples, config)


@pytest.mark.parametrize("name", BY_SLOT)
def test_sums_and_total_against_plain_torch(name: str) -> None:
    config, model = objective(name, bang_streams=3, label_smoothing=0.1), tiny_model()
    loss = ObjectiveLoss(config, VocabShard(24))
    assert list(loss.names) == NAMES[name] and len(loss.weights) == len(loss.names)
    made = batch(name)
    coefficients = torch.tensor(loss.weights, dtype=torch.float64)
    total, sums = TrainingModule(model, loss)(made, coefficients)
    slots = made.slots
    if name == "cmlmc":
        slots = cmlmc.correct(model, made, model.encode(made.source), loss.vocab)
    hidden, length_logits = model(made.source, slots)
    logits = {
        stream: F.log_softmax(model.logits(hidden.flatten(0, 1)[index]), -1)
        for stream, index in made.predict.items()
    }
    targets = {
        s: made.targets[-len(z) :] if s in loss.terms.suffix_streams else made.targets[: len(z)]
        for s, z in logits.items()
    }
    expected = [
        F.cross_entropy(z, targets[s], reduction="sum", label_smoothing=0.1)
        for s, z in logits.items()
    ]
    for a, b in loss.terms.pairs:
        rows = min(len(logits[a]), len(logits[b]))
        p, q = logits[a][:rows], logits[b][:rows]
        expected.append(0.5 * ((p.exp() - q.exp()) * (p - q)).sum())
    expected.append(F.cross_entropy(length_logits, made.lengths.clamp(max=19), reduction="sum"))
    torch.testing.assert_close(sums, torch.stack(expected).detach())
    assert total.item() == pytest.approx(float(coefficients @ sums))
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [MODEL, CONTENT], ids=lambda model: model.ar_stream)
@pytest.mark.parametrize("name", ["ar", "cmlm", "joint"])
def test_the_distributions_of_rivals_are_those_of_janus(name: str, shape: ModelConfig) -> None:
    """The same slots, so the same hidden states. (BANG's slots also read themselves: theirs are
    others.)"""
    model = tiny_model()
    rival, janus = (collate([build_example(PAIR, shape, objective(n))]) for n in (name, "janus"))
    ours, theirs = (model(b.source, b.slots)[0].flatten(0, 1) for b in (rival, janus))
    for stream, index in rival.predict.items():
        states = dict(zip(janus.targets.tolist(), theirs[janus.predict[stream]], strict=False))
        found = dict(zip(rival.targets.tolist(), ours[index], strict=False))
        assert found.keys() == states.keys()
        for token, state in states.items():
            torch.testing.assert_close(found[token], state)


def test_what_is_corrected_is_what_the_model_writes() -> None:
    """Sentence by sentence, by mask-predict in one pass and by Python, against `correct` on the
    batch."""
    model, rng = tiny_model(), np.random.default_rng(3)
    targets = [np.array([BOS, *rng.integers(5, 24, n), EOS]) for n in (4, 9, 2)]
    examples = [
        build_example(
            MaskedPair(rng.integers(5, 24, n + 2), targets[n], np.array([1]), chosen=shown),
            MODEL,
            objective("cmlmc"),
        )
        for n, shown in enumerate((np.array([2, 4]), np.array([3, 4, 7, 9]), np.array([2])))
    ]
    made = collate_examples(examples, objective("cmlmc"))
    slots = cmlmc.correct(model, made, model.encode(made.source), VocabShard(24))
    before, after = made.slots.table, slots.table
    unwritten = before[..., TOKEN] == cmlmc.UNWRITTEN
    assert unwritten.sum() == 7 and torch.equal(before[~unwritten], after[~unwritten])
    for sample, n in enumerate(made.lengths.tolist()):
        source = made.source.tokens[made.source.samples == sample].tolist()
        everything = visible_slots(np.full(n, MASK), np.arange(1, n - 1), MASK)
        everything[0, TOKEN], everything[1, TOKEN] = BOS, EOS
        log_probs = full_pass(model, source, everything)[2:]
        written = {position: int(log_probs[position - 1].argmax()) for position in range(1, n - 1)}
        for slot in after[unwritten & (slots.samples == sample)]:
            assert int(slot[TOKEN]) == written[int(slot[POSITION])]


def test_share_that_is_corrected() -> None:
    """30 % of what shows, rounded down, none of it masked."""
    rng, config = np.random.default_rng(0), objective("cmlmc")
    fields = {"source": np.full(4, 7), "target": np.arange(10, 30)}
    for _ in range(50):
        made = make_example(fields, rng, model=ModelConfig(vocab_size=40), objective=config)
        masked, corrected = len(made.predict["nar"]), len(made.predict["corrected"])
        assert corrected == 3 * (20 - masked) // 10
        assert not set(made.targets[:masked]) & set(made.targets[len(made.targets) - corrected :])


def test_the_first_diagonal_of_bang_is_its_non_autoregressive_layout() -> None:
    """But for bos, which pretraining shows besides."""
    pretrained, tuned = example("bang", bang_streams=4), example("bang_nar")
    first = pretrained.content[4:8]
    assert first[:, [TOKEN, POSITION]].tolist() == tuned.content[:, [TOKEN, POSITION]].tolist()
    assert [row[4:8] for row in table(pretrained)[4:8]] == table(tuned)


@pytest.mark.parametrize("stream", ["query", "content"])
@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize(("full_share", "suffix_share"), [(0.0, 0.0), (0.5, 0.0), (0.2, 0.3)])
def test_expected_sizes_are_those_of_examples(
    name: str, stream: str, full_share: float, suffix_share: float
) -> None:
    if "bang" in name and stream == "content":
        pytest.skip("BANG has no such stream")
    config, rng = (
        objective(
            name, bang_streams=3, masking={"full_share": full_share, "suffix_share": suffix_share}
        ),
        np.random.default_rng(0),
    )
    model = ModelConfig.model_validate({"vocab_size": 40, "ar_stream": stream})
    fields = {"source": np.full(40, 7), "target": np.full(40, 7)}
    made = [make_example(fields, rng, model=model, objective=config) for _ in range(400)]
    found = [
        (len(e.content), len(e.query), sum(map(len, e.predict.values())), attended(e)) for e in made
    ]
    sizes = sample_sizes(model, config, 42)
    expected = (sizes.content, sizes.queries, sizes.predicted, sizes.pairs)
    np.testing.assert_allclose(np.mean(found, 0), expected, rtol=0.06)


def attended(made: Example) -> int:
    """Pairs of a slot and a content slot of its side."""
    content, slots = (
        np.bincount(s[:, SEGMENT])
        for s in (made.content, np.concatenate((made.content, made.query)))
    )
    return int((content * np.resize(slots, len(content))).sum())


# --- configuration
# ---------------------------------------------------------------------------------------------------


def test_defaults_of_each_objective() -> None:
    assert objective("cmlm").masking.kind == "uniform" and objective("cmlm").length == 0.1
    assert ObjectiveConfig.model_validate({"name": "cmlm"}).masking.kind == "infill"
    assert objective("cmlmc").ce_nar == objective("cmlmc").ce_correction == 0.5, "the mean of both"
    assert objective("joint").ce_nar == 1 and objective("joint").kl_ar_nar == 0
    assert objective("ar").length == 0 and objective("bang").length == 0
    for name, row in ROWS.items():
        config = objective(name)
        assert {w for w in weight_names() if getattr(config, w)} <= set(row.weights)
        again = ObjectiveConfig.model_validate_json(config.model_dump_json())
        assert again == config, "a resolved configuration reads back to itself"
    assert ObjectiveConfig.model_validate({"recipe": "translation"}) == objective("janus")


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        (
            {"name": "cmlm", "kl_ar_nar": 1.0},
            "kl_ar_nar",
            'objective "cmlm" has no such term, it has only ce_nar, length',
        ),
        (
            {"name": "bang", "ce_ar": 1.0},
            "ce_ar",
            'objective "bang" has no such term, it has no weights',
        ),
        (
            {"name": "ar", "ce_ar": 0.0},
            None,
            "all weights are 0, so nothing would be learnt: raise one of ce_ar",
        ),
        ({"name": "glat"}, "name", "must be "),
        (
            {"name": "ctc", "label_smoothing": 0.1},
            "label_smoothing",
            'objective "ctc" has no token for each slot to be smoothed: set it to 0',
        ),
        ({"name": "bang", "bang_streams": 0}, "bang_streams", "must be greater than 0"),
    ],
)
def test_wrong_objectives_are_named(given: dict[str, Any], key: str | None, message: str) -> None:
    data = {
        "model": {"vocab_size": 24},
        "objective": given,
        "data": {"train": [{"path": "x"}], "global_batch_size": 8, "micro_batch_size": 8},
        "run": {"output_dir": "y", "max_steps": 1},
    }
    path = ("objective", key) if key else ("objective",)
    assert any(
        where == path and reason.startswith(message)
        for where, reason in validate(data, 1, limit_problems)[1]
    )


def test_what_does_not_go_with_the_architecture_of_cmlmc_is_refused() -> None:
    data = {
        "model": {
            "vocab_size": 24,
            "causal_self_attention": True,
            "embedding_projection": True,
            "scale_embedding": True,
        },
        "objective": {"name": "joint"},
        "data": {"train": [{"path": "x"}], "global_batch_size": 8, "micro_batch_size": 8},
        "run": {"output_dir": "y", "max_steps": 1},
    }
    wrong = [where for where, _ in validate(data, 1, limit_problems)[1]]
    assert wrong == [("model", "scale_embedding"), ("model", "causal_self_attention")]


def test_an_objective_that_predicts_from_masks_alone_is_refused_content_slots() -> None:
    data = {
        "model": {"vocab_size": 24, "ar_stream": "content"},
        "objective": {"name": "bang"},
        "data": {"train": [{"path": "x"}], "global_batch_size": 8, "micro_batch_size": 8},
        "run": {"output_dir": "y", "max_steps": 1},
    }
    assert [where for where, _ in validate(data, 1, limit_problems)[1]] == [("model", "ar_stream")]
