"""Export folders: what is written comes back bit for bit, and nothing wrong is taken for a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import janus_pt.export.folder
import janus_pt.utils.files
from janus_pt import JanusModel
from janus_pt.config.exported import CONFIG
from janus_pt.config.origin import CARD
from janus_pt.export.folder import WEIGHTS, load_export, save_export
from janus_pt.packing.slots import pad_sources
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.models import MODERN, tiny_model, tokenizer_bytes

TOKENIZER = "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "any_name.model"
    path.write_bytes(tokenizer_bytes())
    return path


def model_for(path: Path, dtype: torch.dtype = torch.float32, **shape: object) -> Any:
    return tiny_model(3, dtype, vocab_size=load_tokenizer(path).vocab_size, **shape)


@pytest.fixture(scope="module")
def whole(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good export; tests that spoil one copy it first."""
    folder = tmp_path_factory.mktemp("whole") / "export"
    model = model_for(tokenizer_path)
    save_export(folder, model.state_dict(), model.config, tokenizer_path)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "export"))


SINUSOIDAL = {
    "positions": "sinusoidal",
    "pre_layer_norm": True,
    "ar_position_offset": 0,
    "ar_stream": "content",
}


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.bfloat16, SINUSOIDAL),
        (torch.float64, SINUSOIDAL),
        (torch.float32, MODERN),
    ],
)
def test_round_trip(
    tokenizer_path: Path, tmp_path: Path, dtype: torch.dtype, shape: dict[str, object]
) -> None:
    model = model_for(tokenizer_path, dtype, **shape)
    save_export(tmp_path / "a" / "b", model.state_dict(), model.config, tokenizer_path)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        CARD,
        CONFIG,
        WEIGHTS,
        TOKENIZER,
    ]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    again = JanusModel.from_pretrained(tmp_path / "a" / "b", device="cpu")
    again.save_pretrained(tmp_path / "c")
    for export in (load_export(tmp_path / "a" / "b"), load_export(tmp_path / "c")):
        assert export.config == model.config and export.tokenizers[0].content == tokenizer_bytes()
        assert export.state.keys() == model.state_dict().keys()
        assert all(
            torch.equal(export.state[name], tensor) for name, tensor in model.state_dict().items()
        )
    assert (tmp_path / "a" / "b" / WEIGHTS).read_bytes() == (tmp_path / "c" / WEIGHTS).read_bytes()
    source = pad_sources([torch.tensor([1, 9, 8, 2]).numpy()], 0)
    with torch.no_grad():
        # The sinusoidal table is made in float32. The narrow products of grouped heads round
        # otherwise where weights are stored by columns.
        inexact = {torch.float64: 1e-6, torch.float32: 1e-5}
        tolerance = inexact.get(dtype, 0) if shape else 0
        torch.testing.assert_close(
            again.model.encode(source), model.encode(source), rtol=tolerance, atol=tolerance
        )
    assert not again.model.training


def test_loading_leaves_the_random_state_alone(whole: Path) -> None:
    before = torch.get_rng_state()
    JanusModel.from_pretrained(whole, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_dtype_on_loading(whole: Path) -> None:
    parameters = JanusModel.from_pretrained(whole, torch.bfloat16, "cpu").model.parameters()
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}


# --- what is refused -------------------------------------------------------------------------------------------------


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CONFIG).read_text())
    edit(content)
    (folder / CONFIG).write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other tensors under a hash that fits."""
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)
    digest = janus_pt.export.folder.file_hash(folder / WEIGHTS)
    edit_config(folder, lambda content: content.update(model_sha256=digest))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BIAS = "decoder.layers.0.fc1.bias"
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "model.safetensors is missing"),
    "no config": (lambda f: (f / CONFIG).unlink(), "config.json is missing"),
    "no tokenizer": (lambda f: (f / TOKENIZER).unlink(), "tokenizer.model is missing"),
    "weights cut short": (lambda f: halve(f / WEIGHTS), r"model.safetensors: cut short"),
    "weights of another kind": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x80\x02}q\x00." * 99),
        "cut short or not",
    ),
    "one bit of the weights": (lambda f: flip(f / WEIGHTS, -1), "model.safetensors: damaged"),
    "a tensor too few": (
        lambda f: edit_weights(f, lambda s: s.pop(BIAS)),
        f"1 tensors .* {BIAS} is missing",
    ),
    "a tensor too many": (
        lambda f: edit_weights(f, lambda s: s.update(x=torch.ones(1))),
        "x is .* should be absent",
    ),
    "a wrong shape": (
        lambda f: edit_weights(f, lambda s: s.update({BIAS: torch.ones(7)})),
        rf"{BIAS} is \(7,\), should be \(24,\)",
    ),
    "mixed types": (
        lambda f: edit_weights(f, lambda s: s.update({BIAS: s[BIAS].double()})),
        "of one type, has F32, F64",
    ),
    "integers": (
        lambda f: edit_weights(f, lambda s: s.update({k: v.int() for k, v in s.items()})),
        "has I32",
    ),
    "not JSON": (lambda f: halve(f / CONFIG), "config.json: not JSON"),
    "not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\xfd"), "config.json: not JSON"),
    "deep JSON": (lambda f: (f / CONFIG).write_text("[" * 100_000), "config.json: not JSON"),
    "huge JSON": (lambda f: (f / CONFIG).write_text(" " * (1 << 21)), "config.json: larger than"),
    "another format": (
        lambda f: edit_config(f, lambda c: c.update(format="bart")),
        '"format" is not "janus_pt model"',
    ),
    "no object": (lambda f: (f / CONFIG).write_text("[]"), '"format" is not'),
    "another version": (
        lambda f: edit_config(f, lambda c: c.update(version=2)),
        "version 2, this release reads version 1",
    ),
    "an unknown key": (
        lambda f: edit_config(f, lambda c: c["model"].update(width=3)),
        "model.width: ",
    ),
    "a wrong type": (
        lambda f: edit_config(f, lambda c: c["model"].update(hidden_size="16")),
        "model.hidden_size: ",
    ),
    "no hash": (lambda f: edit_config(f, lambda c: c.pop("model_sha256")), "model_sha256: "),
    "another shape": (
        lambda f: edit_config(f, lambda c: c["model"].update(decoder_layers=1)),
        "tensors do not fit",
    ),
    "heads that do not divide": (
        lambda f: edit_config(f, lambda c: c["model"].update(num_attention_heads=3)),
        r"num_attention_heads \(3\) does not divide hidden_size \(16\)",
    ),
    "absurd width": (
        lambda f: edit_config(f, lambda c: c["model"].update(hidden_size=10**9)),
        "far larger model",
    ),
    "great depth": (
        lambda f: edit_config(f, lambda c: c["model"].update(encoder_layers=999)),
        "far larger model",
    ),
    "absurd depth": (
        lambda f: edit_config(f, lambda c: c["model"].update(encoder_layers=10**9)),
        "encoder_layers: Input should be less than or equal to 1000",
    ),
    "absurd table": (
        lambda f: edit_config(
            f, lambda c: c["model"].update(max_positions=10**9, positions="sinusoidal")
        ),
        "far larger model",
    ),
    "absurd number": (
        lambda f: edit_config(f, lambda c: c["model"].update(ffn_hidden_size=10**40)),
        "far larger model",
    ),
    "another tokenizer": (
        lambda f: (f / TOKENIZER).write_bytes(tokenizer_bytes(290)),
        "tokenizer.model: not the tokenizer the model was exported with",
    ),
    "a damaged tokenizer": (lambda f: halve(f / TOKENIZER), "tokenizer.model: "),
    "other special ids": (
        lambda f: edit_config(f, lambda c: c["model"].update(bos_token_id=7)),
        "its bos_token_id is 1",
    ),
    "a wider vocabulary": (
        lambda f: edit_config(f, lambda c: c["model"].update(vocab_size=4096)),
        "its vocab_size is",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_export_is_refused(folder: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    spoil(folder)
    with pytest.raises(UserError, match=message) as refused:
        JanusModel.from_pretrained(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([CONFIG, WEIGHTS, TOKENIZER]), data=st.data())
def test_any_damage_is_found(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: Any
) -> None:
    """A cut or a changed byte anywhere; in the config a change may leave another valid number."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("damage") / "export"))
    content = (folder / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 2))
    cut = content[:place]
    changed = bytes([*cut, content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    for damaged in (cut, changed):
        (folder / name).write_bytes(damaged)
        try:
            load_export(folder)
        except UserError:
            continue
        assert name == CONFIG and damaged == changed


def test_mask_symbol_may_be_unk(tokenizer_path: Path, tmp_path: Path) -> None:
    model = model_for(tokenizer_path, mask_token_id=3)
    save_export(tmp_path / "x", model.state_dict(), model.config, tokenizer_path)
    assert load_export(tmp_path / "x").config.mask_token_id == 3


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_written(tokenizer_path: Path, tmp_path: Path) -> None:
    model = model_for(tokenizer_path)
    state = model.state_dict()
    padded = {**state, "embed_tokens.weight": torch.zeros(512, 16)}
    with pytest.raises(UserError, match=r"embed_tokens\.weight is \(512, 16\)"):
        save_export(tmp_path / "x", padded, model.config, tokenizer_path)
    with pytest.raises(UserError, match="its vocab_size is"):
        save_export(tmp_path / "x", tiny_model().state_dict(), tiny_model().config, tokenizer_path)
    assert not list(tmp_path.iterdir())


def test_an_export_is_replaced_and_nothing_else_is(
    folder: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    model = model_for(tokenizer_path, torch.float64)
    save_export(folder, model.state_dict(), model.config, tokenizer_path)
    assert load_export(folder).state["embed_tokens.weight"].dtype is torch.float64
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    (tmp_path / "empty").mkdir()
    save_export(tmp_path / "empty", model.state_dict(), model.config, tokenizer_path)
    (folder / "thesis.txt").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CONFIG).write_text('{"architectures": ["BartModel"]}')
    (tmp_path / "file").write_text("precious")
    for target in (folder, tmp_path / "other", tmp_path / "file"):
        with pytest.raises(UserError, match="choose another folder"):
            save_export(target, model.state_dict(), model.config, tokenizer_path)
    assert (folder / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (janus_pt.export.folder, "write_tensors"),
        (janus_pt.export.folder, "file_hash"),
        (janus_pt.utils.files, "sync"),
    ],
)
def test_a_failed_export_leaves_the_old_one(
    folder: Path,
    tokenizer_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    step: str,
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    model = model_for(tokenizer_path, torch.float64)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(module, step, disk_full)
        with pytest.raises(OSError, match="no space left"):
            save_export(folder, model.state_dict(), model.config, tokenizer_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_failed_rename_puts_the_old_one_back(
    folder: Path, tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == ".export.partial":
            raise OSError("gone")
        return rename(self, target)

    model = model_for(tokenizer_path, torch.float64)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="gone"):
            save_export(folder, model.state_dict(), model.config, tokenizer_path)
    assert load_export(folder).state["embed_tokens.weight"].dtype is torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
