"""Special tokens before and behind texts: BART's, mBART's and Marian's, from corpus to output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.generate.ar_scores import score_with_ar
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.modes import check_options
from janus_pt.generate.refine import all_masked
from janus_pt.model.limits import model_problems
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.masking import infill
from janus_pt.packing.example import framed
from janus_pt.packing.slots import POSITION, TOKEN, pad_sources
from tests.support.models import SHAPE, tiny_model
from tests.support.plain_transformer import PlainTransformer

FRAMES: dict[str, dict[str, Any]] = {
    "BART": {"target_prefix": (2, 1)},
    "mBART": {"source_prefix": (), "source_suffix": (2, 5), "target_prefix": (6,)},
    "Marian": {"source_prefix": (), "bos_token_id": 0, "mask_token_id": 3},
}
frames = pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
PREFIX = {"BART": [2, 1], "mBART": [6], "Marian": [0]}
SOURCE = {"BART": ([1], [2]), "mBART": ([], [2, 5]), "Marian": ([], [2])}


@pytest.mark.parametrize("name", FRAMES)
def test_training_reads_what_the_model_reads(name: str) -> None:
    """Denoising: noise is as without frames; AR predicts all tokens behind the first."""
    model = ModelConfig.model_validate({**SHAPE, **FRAMES[name]})
    objective = ObjectiveConfig.model_validate({})
    text = np.arange(7, 17)
    example = make_example(
        {"text": text}, np.random.default_rng(3), model=model, objective=objective
    )
    bare = np.array([model.bos_token_id, *text, 2])
    rng = np.random.default_rng(3)
    noised, masked = infill(rng, bare, model.mask_token_id, 0.3, 3.0, 0.5, 0.0, 99)
    before, behind = SOURCE[name]
    assert example.source.tolist() == [*before, *noised[1:-1], *behind]
    target = [*PREFIX[name], *text, 2]
    batch = collate_examples([example], objective)
    slots = batch.slots.table[0, batch.slots.first_predicting :]
    ar = dict(
        zip(slots[batch.predict["ar"], POSITION].tolist(), batch.targets.tolist(), strict=True)
    )
    assert ar == dict(enumerate(target[1:], start=1))
    nar = slots[batch.predict["nar"]]
    assert nar[:, POSITION].tolist() == [position + len(target) - 12 for position in masked]
    assert set(nar[:, TOKEN].tolist()) == {model.mask_token_id}


@frames
@pytest.mark.parametrize("stream", ["query", "content"])
def test_greedy_search_starts_with_the_prefix(frame: dict[str, Any], stream: str) -> None:
    """Against a loop of whole passes in plain operations, and the score's length."""
    model = tiny_model(7, ar_stream=stream, ar_position_offset=0, **frame)
    config = model.config
    rng = np.random.default_rng(0)
    texts = [rng.integers(7, 24, n) for n in (3, 6)]
    rows = [framed(text, config.source_frame) for text in texts]
    options = check_options("ar", max_length=8)
    found = options.decode(model, pad_sources(rows, config.pad_token_id))
    barred = [config.pad_token_id, config.bos_token_id]
    if config.mask_token_id != config.unk_token_id:
        barred.append(config.mask_token_id)
    for row, source in enumerate(rows):
        written: list[int] = []
        total = 0.0
        while True:
            log_probs = _next(model, source, [*config.target_frame.prefix, *written])
            log_probs[barred] = -torch.inf
            if not written:
                log_probs[2] = -torch.inf
            token = 2 if len(written) == 8 else int(log_probs.argmax())
            total += float(log_probs[token])
            if token == 2:
                break
            written.append(token)
        length = int(found.lengths[row, 0])
        assert found.tokens[row, 0, :length].tolist() == written
        counted = len(written) + len(config.target_frame.prefix)
        assert float(found.scores[row, 0]) == pytest.approx(total / counted, rel=1e-9)


def _next(model: Any, source: np.ndarray, read: list[int]) -> torch.Tensor:
    """Log-probabilities after the tokens `read`."""
    count = len(read)
    order = torch.arange(count)
    zeros = torch.zeros_like(order)
    slots = torch.stack((torch.tensor(read), order, zeros, order, order + 1, zeros, zeros), dim=1)
    if model.config.ar_stream == "query":
        query = slots[-1:].clone()
        query[:, TOKEN] = model.config.mask_token_id
        query[:, 3] = -1
        slots = torch.cat((slots, query))
    tokens = torch.from_numpy(source).long()
    places = torch.arange(len(source))
    encoder_input = torch.stack((tokens, places, torch.zeros_like(places)), dim=1)
    plain = PlainTransformer(model)
    hidden = plain.forward(encoder_input, slots, count)[-1]
    return plain.scores(hidden).log_softmax(-1).detach()


@pytest.mark.parametrize("name", FRAMES)
def test_all_modes_agree_about_the_frame(name: str) -> None:
    """Speculation is greedy search's output and score; drafts have the frame; P_NAR never writes it."""
    model = tiny_model(7, ar_stream="content", **FRAMES[name])
    config = model.config
    rng = np.random.default_rng(1)
    rows = [framed(rng.integers(7, 24, n), config.source_frame) for n in (3, 6, 2, 8)]
    source = pad_sources(rows, config.pad_token_id)
    greedy = check_options("ar", max_length=9).decode(model, source)
    drafted = check_options("speculative", max_length=9).decode(model, source)
    beam = check_options("ar", max_length=9, num_beams=3).decode(model, source)
    for row in range(len(rows)):
        length = int(greedy.lengths[row, 0])
        assert int(drafted.lengths[row, 0]) == length
        assert torch.equal(drafted.tokens[row, 0, :length], greedy.tokens[row, 0, :length])
    assert torch.allclose(drafted.scores, greedy.scores[:, :1], rtol=1e-9)
    # The best beam again, scored as a whole.
    tokens, lengths = beam.tokens[:, 0], beam.lengths[:, 0]
    with torch.inference_mode():
        whole = score_with_ar(model, read_sources(model, source), tokens, lengths).whole(lengths)
    assert torch.allclose(whole / (lengths + len(config.target_frame.prefix)), beam.scores[:, 0])

    written = check_options("nar", iterations=3, max_length=9).decode(model, source)
    for row in range(len(rows)):
        output = written.tokens[row, 0, : int(written.lengths[row, 0])].tolist()
        specials = {config.pad_token_id, config.bos_token_id, 2, 3, config.mask_token_id}
        assert not set(output) & (specials | set(PREFIX[name]))
    draft = all_masked(torch.tensor([2, 1]), config)
    prefix, mask = list(config.target_frame.prefix), config.mask_token_id
    assert draft.tokens.tolist() == [
        [*prefix, mask, mask, 2],
        [*prefix, mask, 2, config.pad_token_id],
    ]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", FRAMES)
def test_drafts_fit_the_position_table(name: str, offset: int) -> None:
    """Where the length head predicts more than the positions hold."""
    shape = {"max_positions": 12, "ar_position_offset": offset, "positions": "sinusoidal"}
    model = tiny_model(7, ar_stream="content", **shape, **FRAMES[name])
    source = pad_sources([framed(np.arange(7, 10), model.config.source_frame)], 0)
    with torch.inference_mode():
        model.embed_length.weight.zero_()
        model.embed_length.weight[-1] = model.encode(source)[0].mean(0)
    greedy = check_options("ar").decode(model, source)
    drafted = check_options("speculative", block_size=3).decode(model, source)
    length = int(greedy.lengths[0, 0])
    assert torch.equal(drafted.tokens[0, 0, :length], greedy.tokens[0, 0, :length])


@pytest.mark.parametrize(
    ("wrong", "key", "reason"),
    [
        ({"target_prefix": [24]}, "target_prefix", "must be below 24, the vocabulary, but has 24"),
        ({"source_suffix": [99]}, "source_suffix", "must be below 24"),
        ({"max_positions": 2}, "max_positions", "leaves no room"),
        ({"bos_token_id": 2}, "eos_token_id", "2 is bos_token_id already"),
    ],
)
def test_frames_that_cannot_be(wrong: dict[str, Any], key: str, reason: str) -> None:
    problems = dict(model_problems(ModelConfig.model_validate({**SHAPE, **wrong})))
    assert reason in problems["model", key]
