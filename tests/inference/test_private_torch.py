"""Private parts of torch that inference/private_torch.py uses: a test each, which says what has moved.

A failure here means: torch has changed; look at the function named in the message and at
janus_pt/inference/private_torch.py, and decode once with and once without it before changing either.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from janus_pt.inference import private_torch
from janus_pt.inference.cpu import Int8Linear, PackedLinear

OPERATORS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")


def bfloat16_layer(bias: bool) -> nn.Linear:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(48, 80, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to(torch.bfloat16)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operators_of_onednn_are_where_we_look(name: str) -> None:
    assert hasattr(torch.ops.mkldnn, name), (
        f"torch.ops.mkldnn.{name} is gone in torch {torch.__version__}: "
        "see janus_pt/inference/private_torch.py"
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_reorder_linear_weight", ["self", "batch_size"]),
        ("_linear_pointwise", ["X", "W", "B", "attr", "scalars", "algorithm"]),
    ],
)
def test_the_operators_take_the_arguments_that_we_give(name: str, arguments: list[str]) -> None:
    schema = getattr(torch.ops.mkldnn, name).default._schema
    assert [argument.name for argument in schema.arguments] == arguments, (
        f"torch.ops.mkldnn.{name} takes other arguments in torch {torch.__version__}: "
        "see janus_pt/inference/private_torch.py"
    )


def test_packing_is_supported_or_not() -> None:
    assert private_torch.can_pack_bfloat16() in (True, False)


@pytest.mark.skipif(not private_torch.can_pack_bfloat16(), reason="no bfloat16 on this CPU")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_a_packed_weight_gives_the_same_product(bias: bool, rows: int) -> None:
    """Against float64, for other numbers of rows than the weight was packed for, and for 3 dimensions."""
    layer = bfloat16_layer(bias)
    packed = private_torch.pack_weight(layer.weight.detach(), 16)
    x = torch.randn(2, rows, 48, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    y = private_torch.linear_with_packed_weight(x, packed, layer.bias)
    assert y.shape == (2, rows, 80) and y.dtype == torch.bfloat16
    double = layer.double()
    with torch.no_grad():
        exact = double(x.double())
    # The product is added up in float32 and rounded to bfloat16 once: 8 bits.
    assert ((y.double() - exact).abs() <= 2**-7 * exact.abs() + 0.05).all()


@pytest.mark.skipif(not private_torch.can_pack_bfloat16(), reason="no bfloat16 on this CPU")
def test_a_packed_layer_keeps_parameters_children_and_hooks() -> None:
    layer = bfloat16_layer(bias=True)
    layer.add_module("adapter_down", nn.Linear(80, 2, dtype=torch.bfloat16))
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.ones(3, 48, dtype=torch.bfloat16)
    packed = PackedLinear(layer.eval())
    assert packed.state_dict().keys() == layer.state_dict().keys()
    assert packed.weight is layer.weight and packed.bias is layer.bias and not packed.training
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=2**-6, atol=0.1)


@pytest.mark.skipif(not private_torch.can_multiply_int8(), reason="no int8 kernels on this CPU")
def test_an_int8_product_is_that_of_the_rounded_numbers() -> None:
    """In float64, from whole numbers that were rounded here: what the kernel computes is known to the last bit."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(80, 48, generator=generator), torch.rand(5, 48, generator=generator)
    x = 2 * x - 1
    with warnings.catch_warnings():
        # The deprecation is known, and silenced inside.
        warnings.simplefilter("error")
        y = private_torch.multiply_int8(x, private_torch.pack_int8(weight))
    scales = weight.abs().amax(dim=1, keepdim=True).double() / 127
    levels = private_torch.INT8_LEVELS
    rounded = (x.double() * levels).round() @ (weight / scales).round().T
    expected = rounded * scales.T / levels
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not private_torch.can_multiply_int8(), reason="no int8 kernels on this CPU")
def test_a_row_in_int8_does_not_depend_on_the_other_rows() -> None:
    generator = torch.Generator().manual_seed(4)
    layer = Int8Linear(nn.Linear(48, 80))
    x = torch.randn(7, 48, generator=generator) * torch.logspace(-3, 3, 7)[:, None]
    x[2] = 0
    whole = layer(x)
    for row in range(7):
        assert torch.equal(layer(x[row : row + 1])[0], whole[row])
    assert whole.isfinite().all()
