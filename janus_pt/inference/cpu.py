"""The layout of weights for decoding on a CPU: column by column, packed for bfloat16, or int8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from janus_pt.inference.private_torch import (
    can_multiply_int8,
    can_pack_bfloat16,
    linear_with_packed_weight,
    multiply_int8,
    pack_int8,
    pack_weight,
    record,
)
from janus_pt.model.blocks import DecoderLayer, Layer
from janus_pt.model.recorded import RecordedCalls
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError

PROJECTION = "output_projection"
"""Name of the layer whose weights are a copy of the embedding's."""
JOINED = "qkv_proj"
"""Name of the layers whose weights are shared with the projections they join."""
PARTS = ("q_proj", "k_proj", "v_proj")
"""Those projections."""
SMALLEST_INT8 = 2**19
"""Weights from which int8 is worth it. Smaller layers stay in a core's cache, and quantising their input takes longer
than it saves: 256 x 256 in 0.05 ms for 16 rows, and 0.15 in int8 (EPYC, AVX2)."""
PACKED_ROWS = 16
"""Rows of input that packed weights are laid out for; they serve any number."""


class PackedLinear(nn.Linear):
    """A linear layer with a second copy of its weights, packed for oneDNN.

    `weight` stays: it is what is saved.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Take the place of `layer`: its parameters, its children and its forward hooks."""
        # The meta device: nothing is allocated for parameters that are replaced at once.
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight = layer.weight
        self.bias = layer.bias
        self.training = layer.training
        # A bottleneck adapter is a child of the layer that it follows, and runs by a hook.
        for name, child in layer.named_children():
            self.add_module(name, child)
        for hook in layer._forward_hooks.values():
            self.register_forward_hook(hook)
        # No buffer: a buffer would be saved, and moved or converted with the model.
        self._packed = pack_weight(layer.weight.detach().contiguous(), PACKED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` to `[..., out_features]`."""
        return linear_with_packed_weight(x, self._packed, self.bias)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output, whose inputs are quantised on the way.

    Each row of the input has a scale of its own, its largest number: a row's output does not depend
    on the other rows. Results are float32.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Take the place of `layer`, in float32 on a CPU."""
        super().__init__()
        weight = layer.weight.detach()
        self._packed = pack_int8(weight)
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` to `[..., out_features]`."""
        largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=-1, keepdim=True)
        # A row of zeros stays one.
        largest = largest.clamp_min_(torch.finfo(x.dtype).tiny)
        product = multiply_int8(x / largest, self._packed)
        return torch.addcmul(self.get_buffer("bias"), product, largest)


def join_projections(model: JanusTransformer) -> None:
    """Make one product of the queries', keys' and values' projections of every self-attention."""
    layers = cast(Iterable[Layer], (*model.encoder.layers, *model.decoder.layers))
    for layer in layers:
        layer.self_attn.join_projections()
        if isinstance(layer, DecoderLayer) and layer.has_causal_attention:
            layer.causal_attn.join_projections()


def is_joined(model: JanusTransformer, name: str) -> bool:
    """Whether the weight of the layer `name` is a part of a joined one, whose layout it then has."""
    parent, _, own_name = name.rpartition(".")
    return own_name in PARTS and getattr(model.get_submodule(parent), JOINED, None) is not None


def lay_out_for_cpu(model: JanusTransformer) -> None:
    """Prepare linear weights for the few rows of a decoding step, in place; values and shapes stay.

    In float32 they are stored column by column: MKL's product is then up to twice as fast. In
    bfloat16 they are packed for oneDNN once and not at every call, where the CPU has instructions
    for it: up to twice as fast again, and in batches several times float32.
    """
    join_projections(model)
    # The embedding's rows must stay together, so the output projection gets a copy of them.
    model.output_projection = _output_projection(model)
    # A list: layers are replaced on the way.
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or is_joined(model, name):
            continue
        layer.weight.data = layer.weight.data.t().contiguous().t()
        if layer.weight.dtype == torch.bfloat16 and can_pack_bfloat16():
            model.set_submodule(name, PackedLinear(layer))
    _record_passes(model)


def quantize_int8(model: JanusTransformer) -> None:
    """Give the output projection, and every linear layer of `SMALLEST_INT8` weights, int8 weights.

    The embedding that the projection was tied to stays as it is; other layers are laid out as by
    `lay_out_for_cpu`.

    Raises:
        UserError: the model is not float32 on a CPU, or torch has no int8 kernels for this CPU.
    """
    weight = model.embed_tokens.get_parameter("weight")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise UserError(
            'quantize: "int8" is for float32 on a CPU; remove dtype and device, or quantize'
        )
    if not can_multiply_int8():
        raise UserError('quantize: torch has no kernels for "int8" on this CPU; leave it out')
    lay_out_for_cpu(model)
    # A list: layers are replaced on the way.
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or is_joined(model, name):
            continue
        if name != PROJECTION and layer.weight.numel() < SMALLEST_INT8:
            continue
        replace_linear(model, name, Int8Linear(layer))
    _record_passes(model)


def replace_linear(model: JanusTransformer, name: str, layer: nn.Module) -> None:
    """Put `layer`, which has a copy of its weights, in the place of the linear layer `name`."""
    model.set_submodule(name, layer)
    parent, _, own_name = name.rpartition(".")
    if own_name == JOINED:
        # Nobody needs them, and they would keep the first weights in memory.
        for part in PARTS:
            setattr(model.get_submodule(parent), part, None)


def _record_passes(model: JanusTransformer) -> None:
    """Let each pass of decoding be recorded at its first call, with the weights as they are laid out now."""
    # Recorded weights are constants, which have no gradients.
    model.requires_grad_(False)
    opaque = [module for module in model.modules() if isinstance(module, PackedLinear | Int8Linear)]
    model.recorded = RecordedCalls(record, opaque)


def is_quantized(model: JanusTransformer) -> bool:
    """Whether weights of the model are int8."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def stored_state(model: JanusTransformer) -> dict[str, Tensor]:
    """The model's state without the copies that decoding has added."""
    state: dict[str, Tensor] = model.state_dict()
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(PROJECTION) and JOINED not in name.split(".")
    }


def _output_projection(model: JanusTransformer) -> nn.Linear:
    """The embedding's weights as a linear layer."""
    weight = model.embed_tokens.get_parameter("weight")
    vocab_size, hidden_size = weight.shape
    # Not initialised: its weight is replaced at once.
    bias = model.output_bias
    has_bias = bias is not None
    projection = nn.utils.skip_init(nn.Linear, hidden_size, vocab_size, bias=has_bias)
    projection.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        projection.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return projection
