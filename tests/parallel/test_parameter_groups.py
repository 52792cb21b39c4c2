"""What is trained and how fast: patterns, the layers' rates, groups of the optimizer, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.model.adapters import matches
from janus_pt.model.meta import full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.parameter_groups import (
    build_optimizer,
    is_trained,
    lr_scale,
    trained_parameters,
)
from janus_pt.utils.errors import UserError
from tests.support.models import MODERN
from tests.support.runs import VOCAB, write_run_config


def config(folder: Path, **changes: Any) -> Config:
    changes = {
        "model__encoder_layers": 2,
        "model__decoder_layers": 3,
        "model__pre_layer_norm": True,
        **changes,
    }
    return read_config(write_run_config(folder, **changes))


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        config(folder, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("encoder", "encoder.layers.0.fc1.weight", True),
        ("encoder", "decoder.layers.0.encoder_attn.q_proj.weight", False),
        ("encoder_attn.q_proj", "decoder.layers.0.encoder_attn.q_proj.weight", True),
        ("layers.1", "decoder.layers.1.fc1.bias", True),
        ("layers.1", "decoder.layers.11.fc1.bias", False),
        ("encoder.layers.*.fc1", "encoder.layers.3.fc1.bias", True),
        ("embed*", "embed_tokens.weight", True),
        ("embed", "embed_tokens.weight", False),
    ],
)
def test_a_pattern_fits_whole_parts_of_a_name(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


def test_the_patterns_say_which_parameters_are_frozen(tmp_path: Path) -> None:
    settings = config(tmp_path, optimizer__freeze=["encoder", "embed_tokens"])
    shapes = full_shapes(settings.model)
    trained = {
        name for name in shapes if name.startswith("decoder.") or name == "embed_length.weight"
    }
    assert {name for name in shapes if is_trained(name, settings.optimizer, None)} == trained
    assert trained_parameters(settings.model, settings.optimizer, None) == sum(
        shapes[name].numel() for name in trained
    )


def test_each_layer_is_slower_than_the_one_above(tmp_path: Path) -> None:
    settings = config(tmp_path, optimizer__layer_lr_decay=0.5)
    expected = {
        "embed_length.weight": 1.0,
        "encoder.layer_norm.bias": 1.0,
        "encoder.layers.1.fc1.weight": 0.5,
        "encoder.layers.0.self_attn.q_proj.bias": 0.25,
        "encoder.embed_positions.weight": 0.125,
        "decoder.layers.2.fc2.weight": 0.5,
        "decoder.layers.0.fc2.weight": 0.125,
        "decoder.layernorm_embedding.weight": 0.0625,
        "embed_tokens.weight": 0.0625,
    }
    assert {name: lr_scale(name, settings.model, 0.5) for name in expected} == expected
    deep = {
        "model__encoder_layers": 5,
        "model__source_vocab_size": VOCAB,
        "optimizer__layer_lr_decay": 0.5,
    }
    apart = config(tmp_path, **deep)
    assert lr_scale("embed_source.weight", apart.model, 0.5) == 0.5**6
    assert (
        lr_scale("embed_tokens.weight", apart.model, 0.5)
        == lr_scale("decoder.embed_positions.weight", apart.model, 0.5)
        == 0.5**4
    )
    optimizer = build_optimizer(settings.optimizer, JanusTransformer(settings.model))
    groups = {(group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups}
    assert groups == {(0.5**n, decay) for n in range(5) for decay in (0.01, 0.0)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        full_shapes(settings.model)
    )


def test_new_kinds_of_layers_are_frozen_and_slowed_like_the_others(tmp_path: Path) -> None:
    modern = {f"model__{key}": value for key, value in MODERN.items()}
    settings = config(
        tmp_path,
        **modern,
        optimizer__freeze=["gate_proj", "decoder.layers.0"],
        optimizer__layer_lr_decay=0.5,
    )
    shapes = full_shapes(settings.model)
    frozen = {name for name in shapes if not is_trained(name, settings.optimizer, None)}
    assert frozen == {
        name for name in shapes if ".gate_proj." in name or name.startswith("decoder.layers.0.")
    }
    gate, fc1 = (f"encoder.layers.0.{layer}.weight" for layer in ("gate_proj", "fc1"))
    assert lr_scale(gate, settings.model, 0.5) == lr_scale(fc1, settings.model, 0.5) == 0.25
    optimizer = build_optimizer(settings.optimizer, JanusTransformer(settings.model))
    decayed = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    # RMSNorm's weights are vectors: not decayed, as LayerNorm's are not.
    assert all(parameter.ndim == 1 for parameter in decayed[0.0])


def test_without_decay_or_freezing_there_are_two_groups(tmp_path: Path) -> None:
    settings = config(tmp_path)
    groups = build_optimizer(settings.optimizer, JanusTransformer(settings.model)).param_groups
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [
        (1.0, 0.01),
        (1.0, 0.0),
    ]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(
        p.ndim == 1 for p in groups[1]["params"]
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such part": (
        {"optimizer__freeze": ["encoder", "embedding"]},
        "optimizer.freeze.1: 'embedding' fits no parameter",
    ),
    "nothing left": ({"optimizer__freeze": ["*"]}, "optimizer.freeze: leaves nothing to train"),
    "lone biases": (
        {"optimizer__freeze": ["fc1.weight"]},
        "no gradient for encoder.layers.0.fc1.bias",
    ),
    "pipeline": (
        {"optimizer__layer_lr_decay": 0.9, "parallel__pipeline_parallel_size": 2},
        "optimizer.layer_lr_decay: does not work with pipelines",
    ),
    "no base": ({"adapter__r": 4}, "adapter: needs a model that it is put on: set run.init_from"),
    "both": (
        {"adapter__r": 4, "optimizer__freeze": ["encoder"]},
        "all but the adapter is frozen already",
    ),
    "target": (
        {"adapter__target_modules": ["q_proj", "query"]},
        "adapter.target_modules.1: 'query' is no layer",
    ),
    "behind what": (
        {"adapter__kind": "bottleneck", "adapter__target_modules": ["fc1"]},
        "'fc1' is no layer; they are called out_proj, fc2",
    ),
    "saved": (
        {"adapter__modules_to_save": ["lm_head"]},
        "adapter.modules_to_save.0: 'lm_head' fits no parameter",
    ),
    "saved biases": (
        {"adapter__modules_to_save": ["bias"]},
        "adapter.modules_to_save: megatron-core makes no",
    ),
    "not LoRA": (
        {"adapter__kind": "bottleneck", "adapter__lora_alpha": 2.0},
        'adapter.lora_alpha: is of kind "lora" only',
    ),
    "width": (
        {"adapter__kind": "bottleneck", "adapter__r": 3, "parallel__tensor_parallel_size": 2},
        "adapter.r: must be a multiple of parallel.tensor_parallel_size (2), but is 3",
    ),
    "misspelt": ({"adapter__lora_r": 4}, "adapter.lora_r: unknown key"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(tmp_path, **changes)
