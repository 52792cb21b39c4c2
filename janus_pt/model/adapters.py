"""Small trained parts on the linear layers of a frozen model: LoRA and bottleneck adapters.

LoRA (Hu et al. 2022) adds `lora_alpha / r · B(A(x))` to what a layer makes of x. A bottleneck (Houlsby et al. 2019)
adds `up(relu(down(y)))` to the output y of attention or of the feed-forward network, before the residual connection.

They are the layer's children, so that no name of the model changes, and are added by a hook. With sharded layers a
column's B and a row's A are sharded like the layer itself, and what the ranks exchange is r wide; a bottleneck is
shared out over its width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import AdapterConfig
from janus_pt.model.dropout import torch_dropout
from janus_pt.model.layer_factory import (
    ALONE,
    PLAIN,
    Layers,
    Rows,
    is_column,
    mark_reads_all_rows,
    partition_dim,
    reads_copied_input,
    unchanged,
)
from janus_pt.model.transformer import JanusTransformer

ForkRng = Callable[[], AbstractContextManager[None]]
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


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The model's linear layers that can have an adapter, by name: all column and row layers."""
    layers = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if is_adapter(name) or not isinstance(weight, nn.Parameter):
            continue
        # A table is shared out over its rows too, but it multiplies nothing.
        if partition_dim(weight) is not None and "embed" not in name:
            layers[name] = module
    return layers


def possible_layers(adapter: AdapterConfig, model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers that an adapter of this kind can be put on, by name."""
    layers = linear_layers(model)
    if adapter.kind == "lora":
        return layers
    # A bottleneck reads a sublayer's output, which a row layer makes.
    return {name: layer for name, layer in layers.items() if not is_column(layer)}


def target_layers(adapter: AdapterConfig, model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of `model` that get an adapter, by name."""
    chosen = {}
    for name, layer in possible_layers(adapter, model).items():
        if any(matches(pattern, name) for pattern in adapter.targets):
            chosen[name] = layer
    return chosen


def add_adapters(model: JanusTransformer, adapter: AdapterConfig, layers: Layers = PLAIN) -> None:
    """Put adapters on `model`, whose layers `layers` has made. Their weights are not set."""
    model.adapter = adapter
    targets = target_layers(adapter, model)
    # Tensors that replaced the factory's without `meta.assign_weights` have lost its marks.
    assert targets, "no layer to adapt: the model's parameters have no marks of sharding"
    for layer in targets.values():
        if adapter.kind == "lora":
            _add_lora(layer, adapter, layers)
        else:
            _add_bottleneck(layer, model.config.hidden_size, adapter.r, layers)


def _add_lora(layer: nn.Module, adapter: AdapterConfig, layers: Layers) -> None:
    """A is sharded like a row layer's input, B like a column layer's output; the other of the two is whole."""
    outputs, inputs = layer.get_parameter("weight").shape
    # The weight is this rank's part; the factory is given whole sizes.
    if is_column(layer):
        first: nn.Module = nn.Linear(inputs, adapter.r, bias=False)
        # All rows where the layer itself is given all.
        column = layers.column
        if reads_copied_input(layer):
            mark_reads_all_rows(first)
            column = layers.column_of_all_rows
        last = column(adapter.r, outputs * layers.tensor_parallel_size, bias=False)
        # The input is identical on all ranks, and so is the mask.
        tp_rng_fork: ForkRng = nullcontext
    else:
        first = layers.row(inputs * layers.tensor_parallel_size, adapter.r, bias=False)
        last = nn.Linear(adapter.r, outputs, bias=False)
        tp_rng_fork = layers.tp_rng_fork
    layer.add_module("lora_A", first)
    layer.add_module("lora_B", last)
    # A of a column layer is computed identically on all ranks. Behind `copy_to_tp_region` its input's
    # gradient would be summed as often as there are ranks.
    copied = reads_copied_input(layer)
    scale_replicated_grad = layers.scale_replicated_grad if copied else unchanged
    # A column layer that is given a rank's own rows.
    shares_rows = is_column(layer) and not copied
    hook = partial(
        _lora,
        adapter.lora_alpha / adapter.r,
        adapter.lora_dropout,
        tp_rng_fork,
        scale_replicated_grad,
        layers.rows if shares_rows else ALONE,
    )
    layer.register_forward_hook(hook)


def _add_bottleneck(layer: nn.Module, hidden_size: int, width: int, layers: Layers) -> None:
    layer.add_module("adapter_down", layers.column(hidden_size, width))
    layer.add_module("adapter_up", layers.row(width, hidden_size))
    layer.register_forward_hook(_bottleneck)


def _lora(
    scaling: float,
    dropout: float,
    tp_rng_fork: ForkRng,
    scale_replicated_grad: Callable[[Tensor], Tensor],
    rows: Rows,
    layer: Any,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    """Forward hook; torch gives it the last three arguments."""
    x = scale_replicated_grad(inputs[0])
    if layer.training and dropout > 0:
        with tp_rng_fork():
            x = torch_dropout(x, dropout, rows.share)
    return output + scaling * layer.lora_B(layer.lora_A(x))


def _bottleneck(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook."""
    update: Tensor = layer.adapter_up(F.relu(layer.adapter_down(output)))
    return output + update


def merged(
    base: Iterable[tuple[str, Tensor]], trained: Mapping[str, Tensor], adapter: AdapterConfig
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the plain model that computes the same as `base` with the LoRA weights in `trained`."""
    scaling = adapter.lora_alpha / adapter.r
    for name, weight in base:
        layer = name.removesuffix(".weight")
        a = trained.get(f"{layer}.lora_A.weight")
        b = trained.get(f"{layer}.lora_B.weight")
        if layer != name and a is not None and b is not None:
            # In float64: rounding a product of low precision would be seen in small updates.
            product = b.double() @ a.double()
            weight = torch.add(weight.double(), product, alpha=scaling).to(weight.dtype)
        # Weights of `modules_to_save` were trained as a whole.
        yield name, trained.get(name, weight).to(weight.dtype)
