"""Models out: folders that transformers loads without our code, and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.huggingface_out import (
    generation_config,
    huggingface_config,
    huggingface_shapes,
    huggingface_weights,
    unsupported,
)
from janus_pt.export.stream import write_tensors
from janus_pt.generate.modes import check_options
from janus_pt.packing.example import framed
from janus_pt.packing.slots import pad_sources
from tests.support.huggingface import MODELS, make_huggingface, read_folder
from tests.support.models import SHAPE, tiny_model

models = pytest.mark.parametrize("name", MODELS)


def write_folder(folder: Path, config: ModelConfig, state: dict[str, Tensor]) -> None:
    """As the command writes it, without a tokenizer."""
    assert not list(unsupported(config))
    shapes = huggingface_shapes(config, {name: x.shape for name, x in state.items()})
    folder.mkdir(exist_ok=True)
    weights = huggingface_weights(config, state)
    write_tensors(folder / "model.safetensors", weights, shapes, {"format": "pt"})
    dtype = state["embed_tokens.weight"].dtype
    for name, values in (
        ("config", huggingface_config(config, dtype)),
        ("generation_config", generation_config(config)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(values))


def load(folder: Path) -> Any:
    """By transformers alone; nothing may be missing, left over or of another shape."""
    model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


@models
def test_there_and_back_is_the_same_file(tmp_path: Path, name: str) -> None:
    """Byte by byte, but for two rows of learned position tables that nothing reads."""
    original = make_huggingface(name, tmp_path / "theirs", torch.float32)
    read = read_folder(name, tmp_path / "theirs")
    write_folder(tmp_path / "back", read.config, dict(read.weights()))
    before = load_file(tmp_path / "theirs/model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        unread = 2 if "embed_positions" in key else 0
        assert tensor.dtype == after[key].dtype
        assert torch.equal(tensor[unread:], after[key][unread:]), key

    loaded = load(tmp_path / "back")
    assert type(loaded) is type(original)
    ids = torch.arange(4, 24).view(2, 10)
    with torch.inference_mode():
        expected = original(input_ids=ids, decoder_input_ids=ids.flip(0)).logits
        found = loaded(input_ids=ids, decoder_input_ids=ids.flip(0)).logits
    # Of the names of GELU by tanh theirs has, we write the one that is torch's own.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(expected, found) or name == "mBART"
    (tmp_path / "theirs/config.json").write_text((tmp_path / "back/config.json").read_text())
    assert read_folder(name, tmp_path / "theirs").config == read.config


OURS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "offset 0, biased": {"ar_position_offset": 0, "output_bias": True, "activation": "gelu_tanh"},
    "pre-norm": {"pre_layer_norm": True, "activation": "silu"},
    "Marian's": {
        "embedding_layer_norm": False,
        "positions": "marian",
        "ar_position_offset": 0,
        "source_vocab_size": 30,
    },
}


@pytest.mark.parametrize("shape", OURS)
def test_generate_writes_what_we_write(tmp_path: Path, shape: str) -> None:
    """Models of our own, with what generation_config.json says; 200 inputs."""
    model = tiny_model(4, torch.float32, ar_stream="content", **OURS[shape])
    config = model.config
    write_folder(tmp_path, config, dict(model.state_dict()))
    # In float64: random weights come near a tie in some beam, and float32 rounds as its machine does.
    theirs = load(tmp_path).double()
    model.double()
    rng = np.random.default_rng(0)
    rows = [framed(rng.integers(5, 24, n), config.source_frame) for n in rng.integers(1, 9, 200)]
    source = pad_sources(rows, config.pad_token_id)
    mask = (source.samples >= 0).long()
    for beams in (1, 4):
        options = check_options("ar", num_beams=beams, forced_eos=True)
        found = options.decode(model, source)
        with torch.inference_mode():
            out = theirs.generate(source.tokens.long(), attention_mask=mask, num_beams=beams)
        for row, sequence in enumerate(out.tolist()):
            text = sequence[1 : sequence.index(2, 1)]
            length = int(found.lengths[row, 0])
            assert found.tokens[row, 0, :length].tolist() == text, (beams, row)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "query stream": ({"ar_stream": "query"}, "ar_stream", "import janus_pt.hf"),
    "RMSNorm": ({"norm": "rms_norm"}, "norm", "compute only 'layer_norm'"),
    "gated": ({"feed_forward": "gated"}, "feed_forward", "compute only 'plain'"),
    "grouped": ({"num_key_value_heads": 1}, "num_key_value_heads", "as many"),
    "rotary": ({"positions": "rotary"}, "positions", 'have "learned" (BartFor'),
    "Marian with a table": (
        {"embedding_layer_norm": False},
        "positions",
        'have "marian" (MarianMTModel), not "learned", and keep no trained table',
    ),
    "two vocabularies": ({"source_vocab_size": 30}, "source_vocab_size", "has one vocabulary"),
    "prefix": ({"target_prefix": [2, 1, 5]}, "target_prefix", "can force one more"),
    "offset": (
        {"embedding_layer_norm": False, "positions": "marian"},
        "ar_position_offset",
        "computes its positions",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_their_classes_cannot_say(case: str) -> None:
    changes, key, reason = REFUSED[case]
    config = ModelConfig.model_validate({**SHAPE, "ar_stream": "content", **changes})
    assert reason in dict(unsupported(config))[key]
