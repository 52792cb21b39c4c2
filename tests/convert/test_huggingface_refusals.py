"""Folders that cannot be converted: one message, which names the file, the key or the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_pt.config.exported import read_export_config
from janus_pt.convert.huggingface_files import open_weights
from janus_pt.convert.huggingface_tokenizer import from_huggingface
from janus_pt.export.from_huggingface import convert_huggingface
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.huggingface import as_ours, make_huggingface, read_folder

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in ("BART", "mBART", "Marian"):
        folders[name] = tmp_path_factory.mktemp(name)
        make_huggingface(name, folders[name], torch.float32)
    return folders


@pytest.fixture
def folder(originals: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of BART's folder, to be damaged."""
    return Path(shutil.copytree(originals["BART"], tmp_path / "bart"))


def change(path: Path, **keys: Any) -> None:
    values = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "-"}))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model_type": "t5"}, "model_type: 't5' is not one of those that can be"),
    "head": (
        {"architectures": ["BartForSequenceClassification"]},
        r"architectures: \['BartForSequenceClassification'\] is another model",
    ),
    "unknown key": ({"rotary_base": 100}, "rotary_base: unknown, so it cannot be converted"),
    "untied": ({"tie_word_embeddings": False}, "tie_word_embeddings: must be True to be converted"),
    "another norm": ({"normalize_before": True}, "normalize_before: must be False"),
    "ffn": ({"decoder_ffn_dim": 32}, "decoder_ffn_dim: 32 differs from encoder_ffn_dim, 48"),
    "heads": ({"decoder_attention_heads": 2}, "decoder_attention_heads: 2 differs from"),
    "activation": ({"activation_function": "quick_gelu"}, "activation_function: must be one of"),
    "missing": ({"d_model": "-"}, "d_model: is missing"),
    "type": ({"encoder_layers": "3"}, "encoder_layers: input should be a valid integer"),
    "two ends": ({"eos_token_id": [2, 5]}, "eos_token_id: input should be a valid integer"),
    "alias": ({"num_hidden_layers": 4}, "num_hidden_layers: 4 differs from encoder_layers, 3"),
    "heads do not divide": (
        {"encoder_attention_heads": 5, "decoder_attention_heads": 5},
        "d_model: must be a multiple of",
    ),
    "too large": ({"d_model": 4 * 10**12}, "d_model: 4000000000000 is far more than"),
    "vocabulary": ({"vocab_size": 60}, r"model.shared.weight is \(61, 32\), but config.json means"),
    "fewer layers": ({"encoder_layers": 2}, "26 tensors are not the model's|16 tensors are not"),
    "more layers": ({"decoder_layers": 3}, "tensors are missing, as decoder.layers.2"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(folder: Path, case: str) -> None:
    changes, message = CONFIGS[case]
    change(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_folder("BART", folder)
    assert str(caught.value).startswith(str(folder))


GENERATION: dict[str, tuple[dict[str, Any], str]] = {
    "penalty": ({"repetition_penalty": 1.2}, "repetition_penalty: 1.2 has no counterpart here"),
    "bars": ({"bad_words_ids": [[1], [7]]}, "bad_words_ids: bars more than pad, bos and mask"),
    "stops": ({"early_stopping": "never"}, "early_stopping: 'never' has no counterpart here"),
    "no number": ({"max_length": "x"}, "max_length: should be a whole number, but is 'x'"),
    "no list": ({"suppress_tokens": 3}, "suppress_tokens: should be a list, but is 3"),
    "another end": ({"eos_token_id": [2, 5]}, r"eos_token_id: \[2, 5\] is not the model's eos, 2"),
    "forced end": (
        {"forced_eos_token_id": 10**6},
        "forced_eos_token_id: 1000000 is not the model's",
    ),
    "no beams": ({"num_beams": 0}, "num_beams: input should be greater than 0"),
    "unknown": ({"assistant_model": "x"}, "assistant_model: unknown"),
}


@pytest.mark.parametrize("case", GENERATION)
def test_ways_to_generate(folder: Path, case: str) -> None:
    changes, message = GENERATION[case]
    change(folder / "generation_config.json", **changes)
    with pytest.raises(UserError, match=f"generation_config.json: {message}"):
        read_folder("BART", folder)


def drop(weights: Weights) -> None:
    del weights["model.encoder.layers.1.fc1.bias"]


def add(weights: Weights) -> None:
    weights["classification_head.dense.weight"] = torch.ones(3)


def untie(weights: Weights) -> None:
    weights["lm_head.weight"] = weights["model.shared.weight"] + 1


def quantise(weights: Weights) -> None:
    name = "model.decoder.layers.0.fc1.weight"
    weights[name] = weights[name].to(torch.int8)


def reshape(weights: Weights) -> None:
    weights["model.encoder.embed_positions.weight"] = torch.ones(30, 32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, "1 tensors are missing, as encoder.layers.1.fc1.bias"),
        (add, "1 tensors are not the model's, as classification_head.dense.weight"),
        (untie, "lm_head.weight differs from model.shared.weight: such a model is not tied"),
        (quantise, "model.decoder.layers.0.fc1.weight is of type torch.int8"),
        (reshape, r"model.encoder.embed_positions.weight is \(30, 32\), but .* \(32, 32\)"),
    ],
)
def test_weights(folder: Path, damage: Callable[[Weights], None], message: str) -> None:
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message):
        dict(read_folder("BART", folder).weights())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_a_clone_without_its_large_files(folder: Path, name: str) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=f"{name}: a pointer of Git LFS: run `git lfs pull`"):
        load_tokenizer(folder / name) if name == "tokenizer.json" else open_weights(folder)


def test_folders_that_are_not_there_or_not_ours(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="facebook/bart-base: no such folder; to download a model"):
        convert_huggingface("facebook/bart-base", tmp_path / "ours")
    with pytest.raises(UserError, match="comes in with `janus-pt convert huggingface`"):
        read_export_config(folder)
    (folder / "vocab.json").write_text('{"model": ["a"]}')
    (folder / "merges.txt").touch()
    with pytest.raises(UserError, match=r"vocab.json: should hold tokens and their ids"):
        from_huggingface(folder)


def test_files_that_are_no_models(folder: Path, originals: dict[str, Path]) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"model.safetensors: cut short or not safetensors"):
        read_folder("BART", folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no weights: neither model.safetensors nor"):
        read_folder("BART", folder)
    torch.save({"x": torch.ones(2), "y": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: holds more than tensors"):
        read_folder("BART", folder)
    assert not Harm.done
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not")
    with pytest.raises(UserError, match=r"pytorch_model.bin: (damaged|holds)"):
        read_folder("BART", folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        read_folder("BART", folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no Hugging Face model here, config.json is missing"):
        read_folder("BART", folder)
    change(originals["mBART"] / "tokenizer_config.json", tokenizer_class="Strange")
    with pytest.raises(UserError, match="tokenizer_class: 'Strange' does not say where languages"):
        read_folder("mBART", originals["mBART"])


class Harm:
    """An object whose unpickling would be seen."""

    done = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Harm, "done", True))


def test_a_bin_and_shards_are_read_alike(folder: Path, tmp_path: Path) -> None:
    """Old files have tied tables several times, and tensors that the library ignores."""
    expected = dict(read_folder("BART", folder).weights())
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_equal(dict(read_folder("BART", folder).weights()), expected)
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(UserError, match=r"names ../outside.safetensors, which is not here"):
        read_folder("BART", folder)
    index.unlink()

    old = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    for tied in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"):
        old[f"{tied}.weight"] = old["shared.weight"]
    old["encoder.version"] = torch.tensor([3.0])
    for zipped in (True, False):
        path = folder / "pytorch_model.bin"
        torch.save(old, path, _use_new_zipfile_serialization=zipped)
        assert_equal(dict(read_folder("BART", folder).weights()), expected)


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_marians_stored_sines(originals: dict[str, Path], tmp_path: Path) -> None:
    """Equal to the computed ones they are left out; other ones become a learned table."""
    folder = Path(shutil.copytree(originals["Marian"], tmp_path / "marian"))
    weights = load_file(folder / "model.safetensors")
    table = as_ours(read_folder("Marian", folder)).encoder.embed_positions.get_buffer("table")
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = table.clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert read_folder("Marian", folder).config.positions == "marian"
    weights["model.decoder.embed_positions.weight"][5, 3] += 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    read = read_folder("Marian", folder)
    assert read.config.positions == "learned"
    learned = as_ours(read).decoder.embed_positions.weight
    assert torch.equal(learned, weights["model.decoder.embed_positions.weight"])


def test_options_of_older_files(folder: Path) -> None:
    """Settings in config.json, with lengths that count the prefix and eos."""
    (folder / "generation_config.json").unlink()
    change(
        folder / "config.json",
        num_beams=4,
        length_penalty=2.0,
        no_repeat_ngram_size=3,
        max_length=142,
        min_length=56,
        early_stopping=True,
        forced_bos_token_id=0,
    )
    read = read_folder("BART", folder)
    assert read.options == {
        "num_beams": 4,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 3,
        "max_length": 139,
        "min_length": 54,
        "forced_eos": True,
    }
