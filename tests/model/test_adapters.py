"""LoRA and bottleneck adapters: what they compute, what is trained, what their folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt import JanusModel
from janus_pt.config.exported import ADAPTER_CONFIG
from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.export.adapters import ADAPTER_WEIGHTS, load_pretrained, save_adapter
from janus_pt.export.folder import load_export, save_export
from janus_pt.model.adapters import add_adapters, is_adapter, target_layers, trained_with
from janus_pt.model.initialize import draw, initialize_weights
from janus_pt.model.meta import build_on_meta, full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.utils.errors import UserError
from tests.parallel.test_tensor_parallel import CONFIG, OBJECTIVE, SEED, loss_and_gradients
from tests.support.models import MODERN, as_source, random_sources, tiny_model, tokenizer_bytes
from tests.support.ranks import run_ranks

ALL = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
MODERN_CONFIG = CONFIG.model_copy(update=MODERN)
LORA = AdapterConfig(r=3, lora_alpha=6.0, target_modules=ALL)
LORA_WITH_GATE = AdapterConfig(r=3, lora_alpha=6.0, target_modules=(*ALL, "gate_proj"))
BOTTLENECK = AdapterConfig(kind="bottleneck", r=4)


def disturb(model: torch.nn.Module) -> None:
    """Random adapters, as after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.copy_(
                    0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                )


def adapted(adapter: AdapterConfig, **shape: Any) -> JanusTransformer:
    """A tiny random model with new adapters."""
    model = tiny_model(1, **shape)
    add_adapters(model, adapter)
    shapes = full_shapes(model.config, adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.copy_(draw(name, shapes[name], 0.02, 7))
    return model.double().eval()


def hidden(model: JanusTransformer) -> torch.Tensor:
    return model.encode(as_source(random_sources(0, 4)))


@pytest.mark.parametrize("shape", [{}, MODERN], ids=["bart", "modern"])
@pytest.mark.parametrize("adapter", [LORA, BOTTLENECK], ids=["lora", "bottleneck"])
def test_at_first_it_is_the_base_model_exactly(
    adapter: AdapterConfig, shape: dict[str, Any]
) -> None:
    assert torch.equal(hidden(adapted(adapter, **shape)), hidden(tiny_model(1, **shape)))


@pytest.mark.parametrize(
    ("adapter", "shape"), [(LORA, {}), (LORA_WITH_GATE, MODERN)], ids=["bart", "modern"]
)
def test_lora_adds_its_product_to_the_weight(adapter: AdapterConfig, shape: dict[str, Any]) -> None:
    """Against a plain model whose weights are the sums, made here by hand."""
    model, plain = adapted(adapter, **shape), tiny_model(1, **shape)
    disturb(model)
    state, parameters = plain.state_dict(), dict(model.named_parameters())
    layers = list(target_layers(adapter, plain))
    assert any(".gate_proj" in name for name in layers) == (shape == MODERN)
    for name in layers:
        product = parameters[f"{name}.lora_B.weight"] @ parameters[f"{name}.lora_A.weight"]
        state[f"{name}.weight"] = state[f"{name}.weight"] + 2.0 * product.detach()
    assert not torch.allclose(hidden(plain), hidden(model), atol=1e-3)
    plain.load_state_dict(state)
    torch.testing.assert_close(hidden(model), hidden(plain), rtol=1e-12, atol=1e-12)


def test_a_bottleneck_is_behind_its_layer() -> None:
    model = adapted(BOTTLENECK)
    disturb(model)
    layer = model.encoder.layers[0].fc2
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    y = F.linear(x, layer.weight, layer.bias)
    down = torch.relu(y @ layer.adapter_down.weight.t() + layer.adapter_down.bias)
    torch.testing.assert_close(
        layer(x), y + down @ layer.adapter_up.weight.t() + layer.adapter_up.bias
    )


@given(st.integers(0, 5), st.sampled_from(["decoder", "encoder.layers.0", "encoder_attn"]))
@settings(max_examples=12, deadline=None)
def test_patterns_choose_layers(target: int, part: str) -> None:
    names = list(full_shapes(CONFIG))
    adapter = AdapterConfig(target_modules=(f"{part}.*{ALL[target]}",))
    assert list(target_layers(adapter, build_on_meta(CONFIG))) == [
        n.removesuffix(".weight")
        for n in names
        if f".{n}".count(f".{part}.") and f".{ALL[target]}.w" in n
    ]


def test_lora_dropout_leaves_the_base_alone() -> None:
    adapter = LORA.model_copy(update={"lora_dropout": 0.5})
    model = adapted(adapter, dropout=0.0)
    plain = hidden(model)
    assert torch.equal(hidden(model.train()), plain)  # B is zero
    disturb(model)
    assert not torch.equal(hidden(model), hidden(model))
    assert torch.equal(hidden(model.eval()), hidden(model))


def test_two_percent_of_a_small_model() -> None:
    model = ModelConfig(vocab_size=8000, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4,
                        encoder_layers=3, decoder_layers=3, max_positions=256, length_classes=128)  # fmt: skip
    for adapter in (AdapterConfig(), AdapterConfig(kind="bottleneck")):
        sizes = {name: shape.numel() for name, shape in full_shapes(model, adapter).items()}
        trained = sum(size for name, size in sizes.items() if trained_with(adapter, name))
        assert 0.005 < trained / sum(sizes.values()) < 0.02
    matrices = 9 * 2 * (256 + 256) * 8  # q and v of 9 attentions, rank 8
    assert (
        sum(s.numel() for n, s in full_shapes(model, AdapterConfig()).items() if is_adapter(n))
        == matrices
    )


def check_sharded() -> list[int]:
    """Losses and gradients of this rank's shards against the plain model's; how many parameters are split."""
    from janus_pt.parallel import groups

    groups.initialize(tensor_parallel_size=2)
    found = []
    for sequence_parallel in (False, True):
        found += [check_kind(adapter, config, sequence_parallel) for adapter, config in SHARDED]
    groups.shutdown()
    return found


SHARDED = [(LORA, CONFIG), (BOTTLENECK, CONFIG), (LORA_WITH_GATE, MODERN_CONFIG)]


def check_kind(adapter: AdapterConfig, config: ModelConfig, sequence_parallel: bool) -> int:
    from janus_pt.model.layer_factory import partition_dim
    from janus_pt.parallel.assemble import build_model
    from janus_pt.parallel.tensor import local_shard, vocab_shard

    def prepare(model: JanusTransformer, part: Any) -> None:
        shapes = full_shapes(config, adapter)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained_with(adapter, name))
            if is_adapter(name):
                with torch.no_grad():
                    parameter.copy_(part(parameter, draw(f"{name}.x", shapes[name], 0.3, SEED)))

    model = build_model(config, SEED, adapter=adapter, sequence_parallel=sequence_parallel)
    prepare(model, local_shard)
    plain = JanusTransformer(config)
    add_adapters(plain, adapter)
    initialize_weights(plain, SEED)
    prepare(plain, lambda _, whole: whole)
    shard = vocab_shard(model.embed_tokens, CONFIG.vocab_size)
    losses, gradients = loss_and_gradients(TrainingModule(model, ObjectiveLoss(OBJECTIVE, shard)))
    whole = ObjectiveLoss(OBJECTIVE, VocabShard(CONFIG.vocab_size))
    expected_losses, expected = loss_and_gradients(TrainingModule(plain, whole))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    split = 0
    for name, parameter in model.named_parameters():
        if not trained_with(adapter, name):
            assert gradients[name] is None
            continue
        assert expected[name].abs().max() > 1e-6 or name.endswith("adapter_up.bias")
        torch.testing.assert_close(
            gradients[name], local_shard(parameter, expected[name]), rtol=1e-10, atol=1e-12
        )
        split += partition_dim(parameter) is not None
    return split


def test_two_ranks_compute_what_one_does() -> None:
    lora, bottleneck, with_gate = (
        len(target_layers(adapter, build_on_meta(config))) for adapter, config in SHARDED
    )
    split = [lora, 3 * bottleneck, with_gate]  # of LoRA one matrix; down, its bias and up
    assert run_ranks(check_sharded, 2) == [[*split, *split]] * 2


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes())
    model = tiny_model(1, torch.float32, vocab_size=300)
    save_export(folder / "export", model.state_dict(), model.config, folder / "tokenizer.model")
    return folder / "export"


def save(folder: Path, base: Path, adapter: AdapterConfig) -> JanusTransformer:
    """Write random adapters; the model with them, unmerged."""
    model = load_export(base).model()
    dtype = model.embed_tokens.weight.dtype
    add_adapters(model, adapter)
    disturb(model.to(dtype))
    state = {
        name: p.detach() for name, p in model.named_parameters() if trained_with(adapter, name)
    }
    save_adapter(folder, state, adapter, base)
    return model.eval()


@pytest.mark.parametrize(
    ("dtype", "tolerance", "shape"),
    [
        (torch.float32, 1e-6, {}),
        (torch.float64, 1e-13, {}),
        (torch.float64, 1e-13, {"source_vocab_size": 300}),
        (torch.float64, 1e-13, MODERN),
    ],
)
def test_the_merged_export_is_the_unmerged_model(
    base: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float, shape: dict[str, Any]
) -> None:
    changes = {"init_std": 0.2, **shape}
    plain = JanusTransformer(load_export(base).config.model_copy(update=changes))
    initialize_weights(plain, SEED)
    tokenizers = [base / "tokenizer.model"] * (2 if "source_vocab_size" in shape else 1)
    save_export(tmp_path / "base", plain.to(dtype).state_dict(), plain.config, tokenizers)
    unmerged = save(tmp_path / "adapter", tmp_path / "base", LORA)
    JanusModel.from_pretrained(tmp_path / "adapter", device="cpu").save_pretrained(
        tmp_path / "merged"
    )
    merged = load_export(tmp_path / "merged").model()
    source = as_source(random_sources(0, 4))
    again = load_pretrained(tmp_path / "adapter", merge=False).model()
    ours, theirs, third, before = (
        torch.softmax(m.logits(m.encode(source)), -1)
        for m in (merged, unmerged, again, plain.eval())
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert (ours - before).abs().max() > 1e-2
    assert torch.equal(theirs, third)
    with pytest.raises(UserError, match="exists and is no"):
        save_adapter(tmp_path / "merged", {}, LORA, tmp_path / "base")


def test_bottlenecks_decode_from_their_folder_and_cannot_be_merged(
    base: Path, tmp_path: Path
) -> None:
    unmerged = save(tmp_path / "adapter", base, BOTTLENECK)
    loaded = JanusModel.from_pretrained(tmp_path / "adapter", device="cpu")
    source = as_source(random_sources(0, 4))
    torch.testing.assert_close(loaded.model.encode(source), unmerged.encode(source))
    assert loaded.generate(["the slot"], mode="nar", iterations=2)[0].tokens is not None
    with pytest.raises(UserError, match="cannot be merged"):
        loaded.save_pretrained(tmp_path / "merged")
    with pytest.raises(UserError, match="no int8 form"):
        JanusModel.from_pretrained(tmp_path / "adapter", quantize="int8")


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**content, **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: edit(f, base_model_name_or_path="elsewhere"), "its base model is not in"),
        (lambda f: edit(f, base_model_sha256="0"), "was trained on another model"),
        (lambda f: edit(f, version=2), "version 2, this release reads version 1"),
        (lambda f: edit(f, adapter={"kind": "lora", "r": 0}), "adapter.r: "),
        (lambda f: edit(f, adapter={"kind": "lora", "r": 1}), "its tensors do not fit"),
        (lambda f: (f / ADAPTER_CONFIG).write_text("{"), "not JSON"),
        (lambda f: (f / ADAPTER_WEIGHTS).unlink(), "is missing"),
        (lambda f: flip(f / ADAPTER_WEIGHTS), "damaged"),
    ],
)
def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path, spoil: Any, told: str) -> None:
    save(tmp_path / "adapter", base, LORA)
    spoil(tmp_path / "adapter")
    with pytest.raises(UserError, match=told):
        load_pretrained(tmp_path / "adapter")
