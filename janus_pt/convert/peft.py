"""LoRA adapters in the form of the library peft (0.21), on the Hugging Face form of their base.

Files: adapter_config.json with the keys of peft's `LoraConfig`, and adapter_model.safetensors,
whose tensors have our names behind a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.adapters import FIRST, LAST, target_layers
from janus_pt.model.meta import build_on_meta

PREFIX = "base_model.model."
"""peft's own, before the names of the model that it wraps."""
INNER = "model."
"""Before our names in transformers' models for generation."""
LENGTH_HEAD = "embed_length"
"""What else may be trained beside LoRA. Hugging Face's form has no place for it."""
LENGTH_HEAD_FILE = "embed_length.safetensors"
"""It is put there; peft does not open this file."""
LORA = (FIRST[0], LAST[0])
USED = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "init_lora_weights",
    # The tensors' names say which layers have an adapter.
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    # The base is the export that the user gives.
    "base_model_name_or_path",
}
IGNORED = {
    # About how peft loads and trains, not about what the adapter computes.
    "auto_mapping",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "revision",
    "task_type",
    # Of no effect unless `use_qalora` is set, which is refused.
    "qalora_group_size",
}
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they are."""


def peft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA's tensors under peft's names."""
    return {f"{PREFIX}{INNER}{name}": tensor for name, tensor in state.items()}


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a peft folder under our names; other prefixes stay."""
    return {name.removeprefix(PREFIX).removeprefix(INNER): t for name, t in state.items()}


def peft_config(adapter: AdapterConfig, layers: Iterable[str], base: str) -> dict[str, Any]:
    """The content of peft's adapter_config.json.

    Args:
        layers: names of the adapted layers. In full, since peft compares the items with the ends of
            modules' names, and knows no wildcards.
        base: name or folder of the base in Hugging Face's form.
    """
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "target_modules": sorted(f"{INNER}{layer}" for layer in layers),
    }


def unsupported(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of a peft configuration that our adapters cannot express, and why."""
    kind = config.get("peft_type")
    if kind != "LORA":
        yield "peft_type", f"is {kind!r}; only LORA can be converted"
        return
    for key in ("r", "lora_alpha"):
        if key not in config:
            yield key, "is missing"
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        reason = f"{start!r} changes the base's weights, which the adapter's do not say"
        yield (
            "init_lora_weights",
            f"{reason}: convert it with peft's path_initial_model_for_weight_conversion first",
        )
    for key, value in config.items():
        is_off = not value or value == "none"
        if key not in USED | IGNORED and not is_off:
            yield key, f"{value!r} is not supported: our LoRA adapters have nothing like it"


def adapter_of(
    config: Mapping[str, Any], state: Mapping[str, Tensor], base: ModelConfig
) -> AdapterConfig:
    """Our configuration of a peft adapter that has nothing `unsupported`.

    Args:
        state: its tensors under our names.
        base: the model that it is put on.
    """
    rank, alpha = config["r"], float(config["lora_alpha"])
    if config.get("use_rslora"):
        # peft then divides by the root of r, we by r.
        alpha *= math.sqrt(rank)
    values: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": float(config.get("lora_dropout", 0.0)),
        "modules_to_save": (LENGTH_HEAD,) if f"{LENGTH_HEAD}.weight" in state else (),
    }
    layers = adapted_layers(state)
    default = AdapterConfig(**values)
    if layers == set(target_layers(default, build_on_meta(base))):
        return default
    return AdapterConfig(**values, target_modules=tuple(sorted(layers)))


def adapted_layers(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the layers that LoRA's tensors belong to."""
    layers = set()
    for name in state:
        layer, _, parameter = name.removesuffix(".weight").rpartition(".")
        if parameter in LORA:
            layers.add(layer)
    return layers
