"""The library peft itself loads our adapters, and we load its own; logits are compared on
transformers' BART."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from janus_pt.config.exported import ADAPTER_CONFIG
from janus_pt.config.schema import AdapterConfig
from janus_pt.convert.peft import LENGTH_HEAD_FILE
from janus_pt.export.adapters import ADAPTER_WEIGHTS, load_pretrained
from janus_pt.export.from_peft import import_from_peft
from janus_pt.export.to_peft import export_to_peft
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError
from tests.support.doors import write_adapter, write_export
from tests.support.models import as_source

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SOURCE, TARGET = [1, 9, 8, 7, 2], [[1, 5, 6, 9]]
TARGETS = {
    "default": None,
    "patterns": ("encoder.layers.0.*.q_proj", "decoder.layers.1.fc1", "fc2"),
    "a layer": ("decoder.layers.1",),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and beside it the same weights as transformers' BART, in the folder `bart`."""
    folder = tmp_path_factory.mktemp("base")
    shape = dict(encoder_layers=2, ar_position_offset=0, max_positions=30, dtype=torch.float64)
    model = write_export(folder / "export", **shape)
    bart_of(model).save_pretrained(folder / "bart")
    return folder


def bart_of(model: JanusTransformer) -> Any:
    """The same model in transformers' code, filled by hand."""
    config = model.config
    shape: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        shape[f"{side}_layers"] = getattr(config, f"{side}_layers")
        shape[f"{side}_attention_heads"] = config.num_attention_heads
        shape[f"{side}_ffn_dim"] = config.ffn_hidden_size
    bart = transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            max_position_embeddings=config.max_positions,
            activation_function=config.activation,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
            **shape,
        )
    ).double()
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_positions.weight"):
            tensor = torch.cat((torch.zeros(2, config.hidden_size), tensor)).double()
        state[f"model.{name}"] = tensor
    state["model.shared.weight"] = state.pop("model.embed_tokens.weight")
    for name in (
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ):
        state[name] = state["model.shared.weight"]
    state["final_logits_bias"] = torch.zeros(1, config.vocab_size).double()
    del state["model.embed_length.weight"]
    bart.load_state_dict(state)
    return bart.eval()


def our_log_probs(folder: Path) -> Tensor:
    model = load_pretrained(folder).model().double()
    decoder = IncrementalDecoder(model, read_sources(model, as_source([SOURCE])))
    with torch.no_grad():
        return decoder.read_block(torch.tensor(TARGET), torch.tensor([0]), len(TARGET[0]))[0]


def peft_log_probs(base: Path, folder: Path) -> Tensor:
    bart = transformers.BartForConditionalGeneration.from_pretrained(
        base / "bart", dtype=torch.float64
    )
    model = peft.PeftModel.from_pretrained(
        bart, folder, torch_device="cpu", autocast_adapter_dtype=False
    )
    return log_probs_of(model)


def log_probs_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits = model.eval()(
            input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor(TARGET)
        ).logits
    return logits.log_softmax(-1)[0]


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ADAPTER_CONFIG).read_text())


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_peft_computes_the_same_and_gives_it_back(
    targets: tuple[str, ...] | None, base: Path, tmp_path: Path
) -> None:
    adapter = AdapterConfig(r=3, lora_alpha=7.0, target_modules=targets)
    ours, theirs, again = tmp_path / "ours", tmp_path / "theirs", tmp_path / "again"
    write_adapter(ours, adapter, base / "export")
    export_to_peft(ours, str(base / "bart"), theirs)
    expected = our_log_probs(ours)
    torch.testing.assert_close(peft_log_probs(base, theirs), expected, rtol=0, atol=1e-6)
    # The adapter matters.
    assert (our_log_probs(base / "export") - expected).abs().max() > 0.1
    import_from_peft(theirs, base / "export", again)
    assert (again / ADAPTER_WEIGHTS).read_bytes() == (ours / ADAPTER_WEIGHTS).read_bytes()
    if targets is None:
        assert content(again) == content(ours)
    torch.testing.assert_close(our_log_probs(again), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_made(rslora: bool, base: Path, tmp_path: Path) -> None:
    bart = transformers.BartForConditionalGeneration.from_pretrained(
        base / "bart", dtype=torch.float64
    )
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        task_type="SEQ_2_SEQ_LM",
        target_modules="all-linear",
        use_rslora=rslora,
    )
    model = peft.get_peft_model(bart, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "theirs")
    import_from_peft(tmp_path / "theirs", base / "export", tmp_path / "ours")
    found = our_log_probs(tmp_path / "ours")
    torch.testing.assert_close(found, log_probs_of(model), rtol=0, atol=1e-6)
    export_to_peft(tmp_path / "ours", str(base / "bart"), tmp_path / "back")
    weights = (tmp_path / "back" / ADAPTER_WEIGHTS).read_bytes()
    assert weights == (tmp_path / "theirs" / ADAPTER_WEIGHTS).read_bytes()


REFUSED: dict[str, Any] = {
    "peft_type": "IA3",
    "bias": "lora_only",
    "use_dora": True,
    "rank_pattern": {"fc1": 2},
    "alpha_pattern": {"fc1": 2},
    "modules_to_save": ["shared"],
    "lora_bias": True,
    "fan_in_fan_out": True,
    "init_lora_weights": "pissa",
    "use_qalora": True,
    "trainable_token_indices": [5],
    "something_new": 1,
    "r": "three",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_ours_cannot_express_is_refused_by_key(key: str, base: Path, tmp_path: Path) -> None:
    theirs = good_peft_folder(base, tmp_path)
    changed = content(theirs) | {key: REFUSED[key]}
    (theirs / ADAPTER_CONFIG).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=rf"adapter_config\.json: {key}: "):
        import_from_peft(theirs, base / "export", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def good_peft_folder(base: Path, folder: Path) -> Path:
    write_adapter(folder / "ours", AdapterConfig(r=3), base / "export")
    export_to_peft(folder / "ours", "bart", folder / "theirs")
    return folder / "theirs"


def without_one(state: dict[str, Tensor]) -> str:
    name = min(state)
    del state[name]
    return name.removeprefix("base_model.model.model.")


def on_an_embedding(state: dict[str, Tensor]) -> str:
    state["base_model.model.model.shared.lora_embedding_A"] = torch.zeros(3, 4).double()
    return "shared.lora_embedding_A"


def on_no_layer(state: dict[str, Tensor]) -> str:
    state["base_model.model.model.encoder.layers.7.fc1.lora_A.weight"] = torch.zeros(3, 16).double()
    return "encoder.layers.7.fc1"


def misshapen(state: dict[str, Tensor]) -> str:
    name = min(state)
    state[name] = state[name].T.contiguous()
    return name.removeprefix("base_model.model.model.")


@pytest.mark.parametrize("spoil", [without_one, on_an_embedding, on_no_layer, misshapen])
def test_tensors_that_do_not_fit_are_named(spoil: Any, base: Path, tmp_path: Path) -> None:
    theirs = good_peft_folder(base, tmp_path)
    state = load_file(theirs / ADAPTER_WEIGHTS)
    name = spoil(state)
    save_file(state, theirs / ADAPTER_WEIGHTS)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        import_from_peft(theirs, base / "export", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_weights_that_are_a_pickle_are_not_opened(base: Path, tmp_path: Path) -> None:
    theirs = good_peft_folder(base, tmp_path)
    (theirs / ADAPTER_WEIGHTS).rename(theirs / "adapter_model.bin")
    with pytest.raises(UserError, match="safetensors is missing"):
        import_from_peft(theirs, base / "export", tmp_path / "again")


@pytest.mark.parametrize("name", [ADAPTER_WEIGHTS, LENGTH_HEAD_FILE])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x00" * 9, "cut short"), (b"version https://git-lfs.github.com/spec/v1", "of Git LFS")],
)
def test_damaged_files_are_named(
    name: str, content: bytes, message: str, base: Path, tmp_path: Path
) -> None:
    theirs = good_peft_folder(base, tmp_path)
    (theirs / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        import_from_peft(theirs, base / "export", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("key, value", [("ar_stream", "query"), ("norm", "rms_norm")])
def test_a_base_that_hugging_face_has_no_class_for_is_refused(
    key: str, value: str, tmp_path: Path
) -> None:
    write_export(tmp_path / "export", **{key: value})
    write_adapter(tmp_path / "ours", AdapterConfig(r=3), tmp_path / "export")
    with pytest.raises(UserError, match=rf"its base's model\.{key}: "):
        export_to_peft(tmp_path / "ours", "bart", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    "key, adapter",
    [
        ("kind", AdapterConfig(kind="bottleneck", r=4)),
        ("modules_to_save", AdapterConfig(r=4, modules_to_save=("embed_length", "embed_tokens"))),
    ],
)
def test_what_peft_cannot_express_is_refused_by_key(
    key: str, adapter: AdapterConfig, base: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "ours", adapter, base / "export")
    with pytest.raises(UserError, match=rf"adapter\.{key}: "):
        export_to_peft(tmp_path / "ours", "bart", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
