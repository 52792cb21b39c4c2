"""Several linear layers as one product, against each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from janus_pt.model.joint_linear import JointLinear, joined

SIZES = (6, 4, 4)


def layers(in_one_block: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    made = [nn.Linear(5, size, dtype=torch.float64) for size in SIZES]
    if in_one_block:
        for name in ("weight", "bias"):
            parameters = [layer.get_parameter(name) for layer in made]
            parts = torch.cat([parameter.detach() for parameter in parameters]).split(SIZES)
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.data = part
    return made


def gradients(
    x: Tensor, outputs: tuple[Tensor, ...], parameters: list[nn.Parameter]
) -> tuple[Tensor, ...]:
    total = torch.stack([(output * output).sum() for output in outputs]).sum()
    return torch.autograd.grad(total, [x, *parameters])


@pytest.mark.parametrize("in_one_block", [False, True])
def test_outputs_and_gradients_are_those_of_the_layers(in_one_block: bool) -> None:
    made = layers(in_one_block)
    parameters = [layer.weight for layer in made] + [layer.bias for layer in made]
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = tuple(layer(x) for layer in made)
    found = JointLinear.apply(x, *parameters)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(x, found, parameters), gradients(x, expected, parameters))


def test_what_lies_together_is_not_copied() -> None:
    together = [layer.weight.detach() for layer in layers(True)]
    assert joined(together).data_ptr() == together[0].data_ptr()
    # In another order, or with a gap, it is.
    assert joined(together[::-1]).data_ptr() != together[2].data_ptr()
    assert torch.equal(joined(together[::2]), torch.cat(together[::2]))
