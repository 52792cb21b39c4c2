"""Models of transformers in: their encoder states, logits, losses and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.generate.constraints import forbidden_in_ar
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.generate.modes import check_options
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.example import framed
from janus_pt.packing.slots import Source, pad_sources
from tests.support.huggingface import MODELS, as_ours, make_huggingface, read_folder

FIRST, COMMON = 4, 57
"""Ordinary tokens of all models: from the one up to the other."""
models = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Any]]:
    """Both models by name, float64."""
    made = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("hf")
        made[name] = make_huggingface(name, folder), as_ours(read_folder(name, folder))
    return made


def texts(seed: int, count: int, longest: int = 11) -> list[np.ndarray]:
    """Random ids, without frames."""
    rng = np.random.default_rng(seed)
    return [rng.integers(FIRST, COMMON, n) for n in rng.integers(1, longest + 1, count)]


def as_source(sources: list[np.ndarray], config: ModelConfig) -> tuple[Source, Tensor, Tensor]:
    """A padded batch: ours, and theirs as ids and attention mask."""
    rows = [framed(text, config.source_frame) for text in sources]
    source = pad_sources(rows, config.pad_token_id)
    return source, source.tokens.long(), (source.samples >= 0).long()


def teacher_forced(
    theirs: nn.Module, ours: JanusTransformer, sources: list[np.ndarray], targets: list[np.ndarray]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    """Encoder states of both, log-probabilities at every decoder input of both, real source places."""
    config = ours.config
    source, ids, mask = as_source(sources, config)
    rows = [np.concatenate((config.target_frame.prefix, target)) for target in targets]
    width = max(map(len, rows))
    decoder_input = torch.full((len(rows), width), config.pad_token_id)
    for row, tokens in enumerate(rows):
        decoder_input[row, : len(tokens)] = torch.from_numpy(tokens)
    with torch.inference_mode():
        # Padding is to the right, where nothing that counts reads it.
        out = theirs(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=decoder_input,
            decoder_attention_mask=torch.ones_like(decoder_input),
        )
        memory = read_sources(ours, source)
        start = torch.zeros(len(rows), dtype=torch.long)
        block = IncrementalDecoder(ours, memory).read_block(decoder_input, start, width)
        encoded = ours.encode(source)
    their_log_probs = [out.logits[row, : len(r)].log_softmax(-1) for row, r in enumerate(rows)]
    our_log_probs = [block[row, : len(r)] for row, r in enumerate(rows)]
    return out.encoder_last_hidden_state, encoded, their_log_probs, our_log_probs, mask.bool()


@models
@pytest.mark.parametrize("count", [1, 5])
def test_states_and_logits_are_theirs(converted: Any, name: str, count: int) -> None:
    theirs, ours = converted[name]
    states, encoded, expected, found, real = teacher_forced(
        theirs, ours, texts(count, count), texts(count + 9, count, 20)
    )
    # M2M-100's sines are computed in float32, ours are rounded once.
    most = 1e-5 if name == "M2M-100" else 1e-10
    assert (states - encoded)[real].abs().max() < most
    for their_row, our_row in zip(expected, found, strict=True):
        assert (their_row - our_row).abs().max() < most


@models
def test_float32_differs_by_rounding(tmp_path: Path, name: str) -> None:
    theirs = make_huggingface(name, tmp_path, torch.float32)
    ours = as_ours(read_folder(name, tmp_path))
    assert ours.embed_tokens.weight.dtype is torch.float32
    states, encoded, expected, found, real = teacher_forced(
        theirs, ours, texts(3, 4), texts(5, 4, 20)
    )
    assert (states - encoded)[real].abs().max() < 1e-5 * states.abs().max()
    for their_row, our_row in zip(expected, found, strict=True):
        assert (their_row - our_row).abs().max() < 1e-5 * their_row.abs().max()


@models
def test_the_first_loss_is_theirs(converted: Any, name: str) -> None:
    """P_AR's cross-entropy of packed training, before any step; for BART the forced bos counts."""
    theirs, ours = converted[name]
    config = ours.config
    objective = ObjectiveConfig.model_validate({"name": "ar", "recipe": "translation"})
    objective = objective.model_copy(update={"label_smoothing": 0.0})
    pairs = list(zip(texts(1, 6), texts(2, 6, 20), strict=True))
    rng = np.random.default_rng(0)
    examples = [
        make_example({"source": s, "target": t}, rng, model=config, objective=objective)
        for s, t in pairs
    ]
    batch = collate_examples(examples, objective)
    with torch.no_grad():
        hidden = ours(batch.source, batch.slots)[0][0]
        logits = ours.logits(hidden)[batch.predict["ar"].long()]
        found = nn.functional.cross_entropy(logits, batch.targets.long())

    _, ids, mask = as_source([source for source, _ in pairs], config)
    rows = [framed(target, config.target_frame) for _, target in pairs]
    width = max(map(len, rows))
    read = torch.full((len(rows), width), config.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, tokens in enumerate(rows):
        read[row, : len(tokens) - 1] = torch.from_numpy(tokens[:-1])
        labels[row, : len(tokens) - 1] = torch.from_numpy(tokens[1:])
    with torch.no_grad():
        given = {} if config.target_frame.prefix[0] in (2, 60) else {"decoder_input_ids": read}
        out = theirs(input_ids=ids, attention_mask=mask, labels=labels, **given)
    # They compute it in the model's type, ours in float64.
    assert float(out.loss) == pytest.approx(float(found), rel=1e-6)


SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {"num_beams": 1}),
    "beam": ({"num_beams": 4}, {"num_beams": 4, "early_stopping": True}),
    "beam, default": ({"num_beams": 4, "late_stopping": True}, {"num_beams": 4}),
    "beam, penalties": (
        {
            "num_beams": 4,
            "length_penalty": 2.0,
            "no_repeat_ngram_size": 3,
            "min_length": 4,
            "renormalize_logits": True,
        },
        {
            "renormalize_logits": True,
            "num_beams": 4,
            "early_stopping": True,
            "length_penalty": 2.0,
            "no_repeat_ngram_size": 3,
        },
    ),
}
LONGEST = 14


@models
@pytest.mark.parametrize("search", SEARCHES)
def test_outputs_are_theirs(converted: Any, name: str, search: str) -> None:
    """200 inputs; their `forced_eos_token_id` is our `forced_eos`, so that the length's cap is no exception."""
    theirs, ours = converted[name]
    config = ours.config
    ours_options, their_options = SEARCHES[search]
    prefix = config.target_frame.prefix
    shortest = ours_options.get("min_length", 1)
    options = check_options("ar", max_length=LONGEST, forced_eos=True, **ours_options)
    same = ended = 0
    for seed in range(4):
        sources = texts(seed, 50)
        source, ids, mask = as_source(sources, config)
        found = options.decode(ours, source)
        out = theirs.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=LONGEST + len(prefix),
            min_new_tokens=shortest + len(prefix) - 1,
            # Not `suppress_tokens`, which refuses a token that is forced.
            bad_words_ids=[[token] for token in forbidden_in_ar(config)],
            forced_eos_token_id=config.eos_token_id,
            forced_bos_token_id=prefix[1] if len(prefix) > 1 else None,
            decoder_start_token_id=prefix[0],
            **their_options,
        )
        for row, sequence in enumerate(out.tolist()):
            text = sequence[len(prefix) :]
            if config.eos_token_id in text:
                text = text[: text.index(config.eos_token_id)]
            length = int(found.lengths[row, 0])
            same += found.tokens[row, 0, :length].tolist() == text
            ended += length < LONGEST
    assert same == 200
    assert ended > 0
