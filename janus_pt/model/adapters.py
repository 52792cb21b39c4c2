"""Small trained parts on the linear layers of a frozen model: LoRA and bottleneck adapters.

LoRA (Hu et al. 2022) adds `lora_alpha / r · B(A(x))` to what a layer makes of x. A bottleneck (Houlsby et al. 2019)
adds `up(relu(down(y)))` to the output y of attention or of the feed-forward network, before the residual connection.

They are the layer's children, so that no name of the model changes, and are added by a hook. With sharded layers a
column's B and a row's A are sharded like the layer itself, and what the ranks exchange is r wide; a bottleneck is
shared out over its width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.layer_factory import PLAIN, Layers, unchanged
from janus_pt.model.transformer import JanusTransformer

SHARED = ("q_proj", "k_proj", "v_proj")
"""Column layers that read the same."""
COLUMN, ROW = (*SHARED, "fc1"), ("out_proj", "fc2")
"""The linear layers by how they are sharded."""
FIRST, LAST = ("lora_A", "adapter_down"), ("lora_B", "adapter_up")
"""The two layers of an adapter; the last one starts as zero."""


def matches(pattern: str, name: str) -> bool:
    """Whether whole parts of the dotted `name` fit a pattern, which may have `*`: `encoder`, `layers.0`, `fc*.bias`."""
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return not {*FIRST, *LAST}.isdisjoint(name.split("."))


def trained_with(adapter: AdapterConfig, name: str) -> bool:
    """Whether the parameter `name` is trained, and saved, where `adapter` is."""
    return is_adapter(name) or any(matches(pattern, name) for pattern in adapter.modules_to_save)


def target_layers(adapter: AdapterConfig, parameters: Iterable[str]) -> list[str]:
    """Names of the linear layers that get an adapter, from the names of the model's parameters."""
    possible = ROW if adapter.kind == "bottleneck" else COLUMN + ROW
    layers = [
        name.removesuffix(".weight")
        for name in parameters
        if name.endswith(".weight") and not is_adapter(name)
    ]
    layers = [layer for layer in layers if layer.rpartition(".")[2] in possible]
    return [
        layer for layer in layers if any(matches(pattern, layer) for pattern in adapter.targets)
    ]


def build_on_meta(
    config: ModelConfig, adapter: AdapterConfig | None = None, layers: Layers = PLAIN
) -> JanusTransformer:
    """The model, with its adapters if it has any, without its numbers: every tensor is on the meta device, nothing is
    allocated or drawn at random."""
    with torch.device("meta"):
        model = JanusTransformer(config, layers)
        if adapter is not None:
            add_adapters(model, adapter, layers)
    return model


def add_adapters(model: JanusTransformer, adapter: AdapterConfig, layers: Layers = PLAIN) -> None:
    """Put adapters on `model`, whose layers `layers` has made. Their weights are not set."""
    model.adapter = adapter
    for name in target_layers(adapter, [name for name, _ in model.named_parameters()]):
        layer, kind = model.get_submodule(name), name.rpartition(".")[2]
        if adapter.kind == "lora":
            inputs, outputs = _sizes(model.config)[kind]
            first: nn.Module
            last: nn.Module
            if kind in ROW:
                first, last = (
                    layers.row(inputs, adapter.r, bias=False),
                    nn.Linear(adapter.r, outputs, bias=False),
                )
            else:
                first, last = (
                    nn.Linear(inputs, adapter.r, bias=False),
                    layers.column(adapter.r, outputs, bias=False),
                )
            layer.add_module("lora_A", first)
            layer.add_module("lora_B", last)
            tp_rng_fork = layers.tp_rng_fork if kind in ROW else nullcontext
            scale_replicated_grad = layers.scale_replicated_grad if kind in SHARED else unchanged
            scaling = adapter.lora_alpha / adapter.r
            layer.register_forward_hook(
                partial(_lora, scaling, adapter.lora_dropout, tp_rng_fork, scale_replicated_grad)
            )
        else:
            layer.add_module("adapter_down", layers.column(model.config.hidden_size, adapter.r))
            layer.add_module("adapter_up", layers.row(adapter.r, model.config.hidden_size))
            layer.register_forward_hook(_bottleneck)


def _sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    d, ffn = config.hidden_size, config.ffn_hidden_size
    return {**dict.fromkeys(COLUMN + ROW, (d, d)), "fc1": (d, ffn), "fc2": (ffn, d)}


def _lora(
    scaling: float,
    dropout: float,
    tp_rng_fork: Any,
    scale_replicated_grad: Any,
    layer: Any,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    x = scale_replicated_grad(inputs[0])
    if layer.training and dropout > 0:
        with tp_rng_fork():
            x = F.dropout(x, dropout)
    return output + scaling * layer.lora_B(layer.lora_A(x))


def _bottleneck(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = layer.adapter_up(F.relu(layer.adapter_down(output)))
    return output + added


def merged(
    base: Iterable[tuple[str, Tensor]], trained: Mapping[str, Tensor], adapter: AdapterConfig
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the plain model that computes what `base` with the LoRA weights in `trained` does."""
    for name, weight in base:
        layer = name.removesuffix(".weight")
        a, b = (trained.get(f"{layer}.{part}.weight") for part in ("lora_A", "lora_B"))
        if a is not None and b is not None and layer != name:
            product = b.double() @ a.double()
            weight = torch.add(weight.double(), product, alpha=adapter.lora_alpha / adapter.r).to(
                weight.dtype
            )
        yield name, trained.get(name, weight).to(weight.dtype)
