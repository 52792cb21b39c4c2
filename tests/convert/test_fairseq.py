"""Checkpoints as fairseq writes them, made from the golden weights, are converted; outputs are the
numbers that the authors' code computed."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from janus_pt.convert.fairseq import convert_fairseq, unsupported
from janus_pt.convert.fairseq_file import FairseqCheckpoint, read_fairseq
from janus_pt.export.folder import load_export
from janus_pt.export.from_fairseq import add_arguments, run
from janus_pt.utils.errors import UserError
from tests.objectives.test_reference_parity import (
    STREAMS,
    Outputs,
    ar_path_is_sound,
    assert_close,
    expected_stream,
    tolerance,
)
from tests.support.doors import write_dictionary, write_fairseq
from tests.support.goldens import ROOT, SHAPES, Golden, needs_goldens

COMMON = dict(
    arch="transformer_janus",
    task="translation_janus_task",
    criterion="janus_loss",
    optimizer="adam",
    lr=[0.0005],
    lr_scheduler="inverse_sqrt",
    source_lang="de",
    target_lang="en",
    dropout=0.3,
    share_all_embeddings=True,
    no_token_positional_embeddings=False,
    adaptive_softmax_cutoff=None,
    quant_noise_pq=0,
    distributed_world_size=2,
    save_dir="checkpoints",
    seed=2048,
    fp16=True,
)


def settings_of(name: str) -> dict[str, Any]:
    """The options that fairseq would have for a golden model."""
    shape = SHAPES[name]
    settings: dict[str, Any] = dict(COMMON)
    for side in ("encoder", "decoder"):
        settings[f"{side}_embed_dim"] = shape["hidden_size"]
        settings[f"{side}_ffn_embed_dim"] = shape["ffn_hidden_size"]
        settings[f"{side}_layers"] = shape[f"{side}_layers"]
        settings[f"{side}_attention_heads"] = shape["num_attention_heads"]
        settings[f"{side}_normalize_before"] = shape["pre_layer_norm"]
        settings[f"{side}_learned_pos"] = shape["positions"] == "learned"
    settings["activation_fn"] = shape["activation"]
    settings["no_scale_embedding"] = not shape["scale_embedding"]
    settings["layernorm_embedding"] = shape["embedding_layer_norm"]
    settings["max_source_positions"] = settings["max_target_positions"] = shape["max_positions"]
    if "mask" in shape["ids"]:
        settings["criterion"] = "janus_pretrain_loss"
    return settings


def weights_of(name: str) -> dict[str, torch.Tensor]:
    """The golden weights with all names and buffers that fairseq stores."""
    weights = OrderedDict(load_file(ROOT / f"{name}_weights.safetensors"))
    table = weights["encoder.embed_tokens.weight"]
    weights["decoder.embed_tokens.weight"] = weights["decoder.output_projection.weight"] = table
    for side in ("encoder", "decoder"):
        weights[f"{side}.version"] = torch.tensor([3.0])
        if SHAPES[name]["positions"] == "sinusoidal":
            weights[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
    return weights


def write(path: Path, name: str, form: str = "args", **more: Any) -> Path:
    """A checkpoint of one of fairseq's two forms, or one from before torch 1.6."""
    settings = settings_of(name)
    content: dict[str, Any] = {
        "args": argparse.Namespace(**settings),
        "model": weights_of(name),
        "optimizer_history": [{"criterion_name": "JanusLoss", "num_updates": 7}],
        "task_state": {},
        "extra_state": {"epoch": 3, "val_loss": np.float64(1.5)},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }
    if form == "cfg":
        criterion = settings.pop("criterion")
        content["args"] = None
        content["cfg"] = {"model": settings, "criterion": {"_name": criterion}, "common": {}}
    content |= more
    torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    return path


@needs_goldens
@pytest.mark.parametrize("form", ["args", "cfg", "old"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_goldens_come_through(name: str, form: str, tmp_path: Path) -> None:
    """Every tensor as the golden test has it; and the configuration but for dropout and offset."""
    checkpoint = read_fairseq(write(tmp_path / "model.pt", name, form))
    assert not list(unsupported(checkpoint.settings))
    config, state = convert_fairseq(checkpoint)
    golden = Golden(name)
    expected = golden.weights()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    wanted = golden.config.model_copy(
        update={"dropout": 0.3, "ar_position_offset": int(golden.denoising)}
    )
    assert config == wanted


def convert(folder: Path, *flags: str) -> Path:
    """What `janus-pt convert fairseq` does with the files in `folder`; the export's folder."""
    names = {"--checkpoint": "model.pt", "--dictionary": "dict.txt", "--codes": "codes"}
    files = [text for flag, name in names.items() for text in (flag, str(folder / name))]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([*files, *flags, "--output", str(folder / "export")]))
    return folder / "export"


@needs_goldens
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_of_the_export_are_the_goldens(name: str, tmp_path: Path) -> None:
    """The authors' numbers, through the command."""
    golden = Golden(name)
    write(tmp_path / "model.pt", name)
    # Denoising has a mask behind the dictionary's tokens.
    write_dictionary(tmp_path, golden.config.vocab_size - golden.denoising)
    export = load_export(convert(tmp_path))
    assert export.config.ar_stream == "query"
    ours = Outputs(golden, export.model().double())
    for stream in STREAMS:
        if stream != "ar" or ar_path_is_sound(golden):
            expected = expected_stream(golden, stream)
            assert_close(ours.logits(stream), expected, tolerance(golden))


def test_a_model_of_our_own_through_the_command(tmp_path: Path) -> None:
    """Without golden vectors: from the authors' form back to the very weights."""
    model = write_fairseq(tmp_path)
    export = load_export(convert(tmp_path))
    assert export.config == model.config
    assert export.state.keys() == model.state_dict().keys()
    assert all(torch.equal(export.state[k], v) for k, v in model.state_dict().items())
    assert export.tokenizers[0].encode("word7") != []


def test_an_unknown_option_can_be_ignored(tmp_path: Path) -> None:
    write_fairseq(tmp_path)
    content = torch.load(tmp_path / "model.pt", weights_only=False)
    content["args"].something_new = 3
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt: something_new 3 is .*--ignore something_new"):
        convert(tmp_path)
    assert not (tmp_path / "export").exists()
    convert(tmp_path, "--ignore", "something_new")


def test_another_dictionary_does_not_fit(tmp_path: Path) -> None:
    write_fairseq(tmp_path)
    write_dictionary(tmp_path, 30)
    with pytest.raises(UserError, match=r"dict\.txt: its vocab_size is 30, the model's is 24"):
        convert(tmp_path)
    assert not (tmp_path / "export").exists()


class Touches:
    """An object whose loading would leave a file: harmless, and proof that it was loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def plain_checkpoint(**settings: Any) -> FairseqCheckpoint:
    """The smallest checkpoint there is: two layers of width 4, without golden vectors."""
    options: dict[str, Any] = {**COMMON, "activation_fn": "relu"}
    sizes = {"embed_dim": 4, "ffn_embed_dim": 6, "layers": 1, "attention_heads": 2}
    for side in ("encoder", "decoder"):
        options |= {f"{side}_{name}": size for name, size in sizes.items()}
        options |= {f"{side}_normalize_before": False, f"{side}_learned_pos": False}
    table = torch.randn(9, 4)
    weights = {"encoder.embed_tokens.weight": table, "decoder.embed_length.weight": table[:5]}
    return FairseqCheckpoint({**options, **settings}, weights)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["extra_state", "args", "model"])
def test_any_other_object_is_refused_and_never_made(place: str, old: bool, tmp_path: Path) -> None:
    content = dict(args=argparse.Namespace(criterion="janus_loss"), model={}, extra_state={})
    trap = Touches(tmp_path / "was_here")
    content[place] = argparse.Namespace(trap=trap) if place == "args" else {"trap": trap}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"model\.pt: holds an object of (_?io|builtins)\.open, "):
        read_fairseq(tmp_path / "model.pt")
    assert not (tmp_path / "was_here").exists()
    # The trap works.
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "was_here").exists()


def test_numbers_of_numpy_1_are_read(tmp_path: Path) -> None:
    """Its pickles name the function by another module."""
    path = tmp_path / "model.pt"
    content = dict(args=argparse.Namespace(seed=1), model={}, extra_state={"loss": np.float64(2.5)})
    torch.save(content, path, _use_new_zipfile_serialization=False)
    older = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert older != path.read_bytes()
    path.write_bytes(older)
    assert read_fairseq(path).settings == {"seed": 1}


def whole(path: Path) -> bytes:
    torch.save(dict(args=argparse.Namespace(seed=1), model={"a": torch.zeros(99)}), path)
    return path.read_bytes()


DAMAGED = {
    "cut short": lambda path: path.write_bytes(whole(path)[:300]),
    "cut at the end": lambda path: path.write_bytes(whole(path)[:-30]),
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "missing": lambda path: None,
    "a list": lambda path: torch.save([1], path),
    "no model": lambda path: torch.save({"args": argparse.Namespace()}, path),
    "no tensor": lambda path: torch.save(dict(args=argparse.Namespace(), model={"a": 1}), path),
    "no options": lambda path: torch.save(dict(args=None, model={}), path),
    "cfg without a model": lambda path: torch.save(dict(cfg={"task": {}}, model={}), path),
    "args of another type": lambda path: torch.save(dict(args=[1], model={}), path),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_other_files_end_in_one_message(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    damage(path)
    with pytest.raises(UserError, match=r"model\.pt: "):
        read_fairseq(path)


def test_random_damage_ends_in_one_message(tmp_path: Path) -> None:
    """Bytes changed at random places: the file is read, or refused."""
    write_fairseq(tmp_path)
    path = tmp_path / "model.pt"
    rng = random.Random(1)
    for content in (path.read_bytes(), in_old_form(path)):
        for _ in range(150):
            damaged = bytearray(content)
            for _ in range(rng.choice([1, 20])):
                damaged[rng.randrange(6000)] = rng.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(UserError):
                read_fairseq(path)


def in_old_form(path: Path) -> bytes:
    """The checkpoint as torch wrote it before 1.6."""
    content = torch.load(path, weights_only=False)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


UNSUPPORTED: dict[str, Any] = {
    "criterion": "label_smoothed_cross_entropy",
    "activation_fn": "tanh",
    "adaptive_softmax_cutoff": "1000,2000",
    "cross_self_attention": True,
    "no_decoder_final_norm": True,
    "decoder_attention_heads": 1,
    "decoder_embed_dim": 8,
    "decoder_output_dim": 2,
    "something_new": 3,
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_options_are_refused_by_name(key: str) -> None:
    assert not list(unsupported(plain_checkpoint().settings))
    settings = plain_checkpoint(**{key: UNSUPPORTED[key]}).settings
    assert key in dict(unsupported(settings))


@pytest.mark.parametrize("key", ["criterion", "encoder_layers", "decoder_normalize_before"])
def test_missing_options_are_named(key: str) -> None:
    settings = plain_checkpoint().settings
    del settings[key]
    assert "missing" in dict(unsupported(settings))[key]


def test_a_value_of_another_type_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.dropout: .*say 'much'"):
        convert_fairseq(plain_checkpoint(dropout="much"))


def test_tables_are_compared() -> None:
    checkpoint = plain_checkpoint()
    table = checkpoint.weights["encoder.embed_tokens.weight"]
    other = torch.randn(12, 4)
    # Two vocabularies; the output is the targets'.
    two = {"decoder.embed_tokens.weight": other, "decoder.output_projection.weight": other.clone()}
    config, state = convert_fairseq(
        FairseqCheckpoint(checkpoint.settings, checkpoint.weights | two)
    )
    assert (config.vocab_size, config.source_vocab_size) == (12, 9)
    assert torch.equal(state["embed_tokens.weight"], other)
    assert torch.equal(state["embed_source.weight"], table)
    # The old name of an output of its own.
    untied = {"decoder.embed_tokens.weight": table, "decoder.embed_out": table + 1}
    with pytest.raises(UserError, match=r"decoder\.embed_out differs"):
        convert_fairseq(FairseqCheckpoint(checkpoint.settings, checkpoint.weights | untied))
    del checkpoint.weights["decoder.embed_length.weight"]
    with pytest.raises(UserError, match=r"decoder\.embed_length\.weight is missing"):
        convert_fairseq(checkpoint)
