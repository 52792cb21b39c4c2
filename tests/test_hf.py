"""`import janus_pt.hf`: exports as models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import janus_pt.hf
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tokenizer import read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.models import tiny_model, tokenizer_bytes

TEXTS = ["the slot reads the mask", "a beam", "and writes a length token pass"]


@pytest.fixture(scope="module", params=["query", "BART's frame"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    tokenizer = read_tokenizer(tokenizer_bytes())
    shape: dict[str, Any] = {"positions": "rotary"}
    if request.param != "query":
        shape = {"ar_stream": "content", "target_prefix": (2, 1), "output_bias": True}
    shape |= {"vocab_size": tokenizer.vocab_size, "max_positions": 40}
    JanusModel(tiny_model(5, **shape), tokenizer).save_pretrained(folder)
    return folder


def encode(model: JanusModel, texts: list[str]) -> dict[str, torch.Tensor]:
    """As a tokenizer of transformers would, padded on the right."""
    rows = [[1, *model.tokenizer.encode(text), 2] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_auto_classes_load_an_export_and_decode_both_ways(export: Path) -> None:
    ours = JanusModel.from_pretrained(export)
    model = AutoModelForSeq2SeqLM.from_pretrained(export)
    assert isinstance(model, janus_pt.hf.JanusForConditionalGeneration)
    assert AutoConfig.from_pretrained(export).pad_token_id == 0
    prefix = list(ours.config.target_frame.prefix)
    inputs = encode(ours, TEXTS)
    for key, tensor in model.encode(TEXTS).items():
        assert torch.equal(tensor, inputs[key])
    for given, options in (
        ({}, {}),
        (
            dict(num_beams=3, length_penalty=0.5),
            dict(num_beams=3, length_penalty=0.5, late_stopping=True),
        ),
        (dict(do_sample=True, top_k=5, seed=3), dict(do_sample=True, top_k=5, seed=3)),
    ):
        expected = ours.generate(TEXTS, max_length=9, **options)
        # Theirs count the new tokens of the prefix, and eos.
        out = model.generate(**inputs, max_new_tokens=9 + len(prefix), **given)
        assert [strip(row, prefix) for row in out.tolist()] == [g.tokens for g in expected]
        assert model.decode(out) == [generation.text for generation in expected]
    out = model.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=8)
    assert len(out) == 6
    for mode, options in (("nar", {"iterations": 2, "length_beam": 2}), ("speculative", {})):
        expected = ours.generate(TEXTS, mode, **options)
        out = model.generate_nar(**inputs, mode=mode, **options)
        assert [strip(row, prefix) for row in out.tolist()] == [g.tokens for g in expected]


def strip(row: list[int], prefix: list[int]) -> list[int]:
    assert row[: len(prefix)] == prefix
    text = row[len(prefix) :]
    end = text.index(2)
    assert set(text[end + 1 :]) <= {0}
    return text[:end]


def test_scores_and_loss_are_those_that_decoding_finds(export: Path) -> None:
    """And have gradients: the class can be trained left to right."""
    ours = JanusModel.from_pretrained(export)
    model = AutoModelForSeq2SeqLM.from_pretrained(export)
    prefix = list(ours.config.target_frame.prefix)
    inputs = encode(ours, TEXTS[:1])
    found = ours.generate(TEXTS[:1], max_length=7)[0]
    target = [*prefix, *found.tokens, 2]
    labels = torch.tensor([target[1:]])
    out = model(**inputs, labels=labels)
    log_probs = out.logits.log_softmax(-1)[0].gather(1, labels[0, :, None])[:, 0]
    scored = log_probs[len(prefix) - 1 : -1].tolist()
    assert scored == pytest.approx(found.token_scores, rel=1e-9)
    assert float(out.loss.detach()) == pytest.approx(-float(log_probs.detach().mean()), rel=1e-9)
    out.loss.backward()
    assert model.janus.embed_tokens.weight.grad.abs().sum() > 0
    # A longer row beside it, padded: its own numbers stay.
    both = encode(ours, TEXTS[:2])
    padded = torch.full((2, labels.shape[1] + 2), -100)
    padded[0, : labels.shape[1]] = labels[0]
    again = model(**both, labels=padded)
    assert float(again.loss) == pytest.approx(float(out.loss), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty: 1.2 has no counterpart here"),
        ({"early_stopping": "never", "num_beams": 2}, "early_stopping"),
        ({"beams": 2}, "beams: unknown"),
        ({"max_new_tokens": 400}, "max_length"),
    ],
)
def test_options_that_are_not_ours(export: Path, options: dict[str, Any], message: str) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(export)
    with pytest.raises(UserError, match=message):
        model.generate(torch.tensor([[1, 9, 2]]), **options)
    with pytest.raises(UserError, match="quantization_config: exports are loaded without it"):
        AutoModelForSeq2SeqLM.from_pretrained(export, quantization_config={"x": 1})
