"""The losses' kernels run by Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.support.triton.interpreted`.

Prints a JSON object: for each case how far the kernels' walk is from another computation: `sums` of
the terms relative to each, gradients (`weight` and `hidden`) relative to the largest number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.objectives.fused_loss import Terms, VocabShard, chunks, cuda, eager
from janus_pt.objectives.fused_loss.terms import Walk, WalkResult
from janus_pt.objectives.r_drop import both_draws
from tests.support.ranks import Ranks

JANUS = Terms(("ar", "nar", "aux"), (("ar", "aux"), ("aux", "nar"), ("ar", "nar")), 0.1)
SIZE, PADDED, WIDTH = 1100, 1106, 8
"""Tokens, rows of the table and hidden size. A program of several streams takes 1,024 columns at once."""
CHUNK_ROWS = 6
Numbers = dict[str, float]


@dataclass(frozen=True)
class Inputs:
    """A walk's arguments but for the vocabulary's shard."""

    hidden: list[Tensor]
    weight: Tensor
    targets: Tensor
    coefficients: Tensor
    terms: Terms

    @staticmethod
    def random(terms: Terms, lengths: list[int], dtype: torch.dtype, scale: float = 1.0) -> Inputs:
        """Random numbers; hidden states are `scale` times those of a normal distribution."""
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

        targets = torch.randint(SIZE, (max(lengths),), generator=generator)
        coefficients = torch.rand(len(terms.names), dtype=torch.float64, generator=generator)
        accumulated = torch.promote_types(dtype, torch.float32)
        hidden = [scale * draw(length, WIDTH) for length in lengths]
        return Inputs(hidden, draw(PADDED, WIDTH), targets, coefficients.to(accumulated), terms)

    def walk(self, walk: Walk, vocab: VocabShard) -> WalkResult:
        """What `walk` makes of them with these rows of the table."""
        weight = self.weight[vocab.start : vocab.start + -(-PADDED // self.ranks(vocab))]
        return walk(self.hidden, weight, self.targets, self.coefficients, self.terms, vocab, True)

    @staticmethod
    def ranks(vocab: VocabShard) -> int:
        """Ranks that share the table."""
        return 1 if vocab.group is None else dist.get_world_size(vocab.group)

    def exact(self) -> Inputs:
        """The same in float64."""
        hidden = [states.double() for states in self.hidden]
        return Inputs(
            hidden, self.weight.double(), self.targets, self.coefficients.double(), self.terms
        )


def difference(found: WalkResult, expected: WalkResult) -> Numbers:
    """How far two results are from each other."""
    assert found.grad_weight is not None and expected.grad_weight is not None
    apart = (found.sums - expected.sums).abs() / expected.sums.abs().clamp(min=1e-30)
    weight = relative(found.grad_weight, expected.grad_weight)
    pairs = zip(found.grad_hidden, expected.grad_hidden, strict=True)
    hidden = max(relative(ours, theirs) for ours, theirs in pairs)
    return {"sums": float(apart.max()), "weight": weight, "hidden": hidden}


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest number."""
    if found.numel() == 0:
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def beside_eager(inputs: Inputs) -> Numbers:
    """The kernels beside PyTorch's operations in float64; how far these are from it in the same dtype
    (`eager ...`); and how far the terms of both are from each other (`apart`)."""
    vocab = VocabShard(SIZE)
    found = inputs.walk(cuda.walk, vocab)
    eagerly = inputs.walk(eager.walk, vocab)
    expected = inputs.exact().walk(eager.walk, vocab)
    numbers = difference(found, expected)
    numbers |= {f"eager {name}": value for name, value in difference(eagerly, expected).items()}
    numbers["apart"] = difference(found, eagerly)["sums"]
    return numbers


def beside_autograd(inputs: Inputs) -> Numbers:
    """The kernels beside torch's own losses and autograd."""
    # Here and not above: ranks that only walk need no hypothesis.
    from tests.objectives.test_fused_loss import plain_losses

    named = dict(zip(inputs.terms.streams, inputs.hidden, strict=True))
    leaves = [inputs.weight, *inputs.hidden]
    for leaf in leaves:
        leaf.requires_grad_()
    sums = plain_losses(named, inputs.weight[:SIZE], inputs.targets, inputs.terms)
    weight, *hidden = torch.autograd.grad(inputs.coefficients @ sums, leaves)
    for leaf in leaves:
        leaf.requires_grad_(False)
    expected = WalkResult(sums.detach(), weight, list(hidden))
    return difference(inputs.walk(cuda.walk, VocabShard(SIZE)), expected)


def padded() -> Numbers:
    """Rows of padding inside and behind the targets of three streams: as if they were not there."""
    inputs = Inputs.random(JANUS, [7, 4, 4], torch.float64)
    inputs.targets[[1, 3, 6]] = -1
    real = [0, 2, 4, 5]
    hidden = [states[[row for row in real if row < len(states)]] for states in inputs.hidden]
    without = replace(inputs, hidden=hidden, targets=inputs.targets[real])
    vocab = VocabShard(SIZE)
    found, expected = inputs.walk(cuda.walk, vocab), without.walk(eager.walk, vocab)
    apart = 0.0
    kept = []
    for states in found.grad_hidden:
        is_real = inputs.targets[: len(states)] >= 0
        apart = max(apart, float(states[~is_real].abs().max()))
        kept.append(states[is_real])
    numbers = difference(replace(found, grad_hidden=kept), expected)
    return {**numbers, "gradient of padding": apart}


def near_streams() -> Numbers:
    """Streams that nearly agree on nearly uniform distributions, in float32 beside float64."""
    inputs = Inputs.random(JANUS, [3, 3, 3], torch.float32, scale=1e-3)
    vocab = VocabShard(SIZE)
    found = inputs.walk(cuda.walk, vocab)
    expected = inputs.exact().walk(eager.walk, vocab)
    eagerly = inputs.walk(eager.walk, vocab)
    pairs = slice(len(JANUS.streams), None)
    return {
        "kernels": float(((found.sums - expected.sums) / expected.sums)[pairs].abs().max()),
        "eager": float(((eagerly.sums - expected.sums) / expected.sums)[pairs].abs().max()),
    }


def bfloat16() -> Numbers:
    """bfloat16 states with exact products, which CPUs do not have, beside float64."""

    def product(a: Tensor, b: Tensor, out: Tensor) -> None:
        out.copy_(a.to(out.dtype) @ b.to(out.dtype))

    def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))

    inputs = Inputs.random(JANUS, [4, 3, 3], torch.bfloat16)
    vocab = VocabShard(SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_product", product)
        patch.setattr(cuda, "_add_product", add_product)
        found = inputs.walk(cuda.walk, vocab)
    return difference(found, inputs.exact().walk(eager.walk, vocab))


def sharded_walk() -> WalkResult:
    """A rank's result over gloo, all ranks' gradients of the hidden states summed."""
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    vocab = VocabShard(SIZE, dist.get_rank() * PADDED // ranks, dist.group.WORLD)
    result = Inputs.random(JANUS, [5, 3, 3], torch.float32).walk(cuda.walk, vocab)
    for grad in result.grad_hidden:
        dist.all_reduce(grad)
    dist.destroy_process_group()
    return result


def two_ranks() -> Numbers:
    """Two tensor-parallel ranks beside PyTorch's operations on the whole table."""
    with Ranks() as ranks:
        first, second = ranks.run(sharded_walk, 2)
    assert torch.equal(first.sums, second.sums)
    whole = WalkResult(
        first.sums, torch.cat((first.grad_weight, second.grad_weight)), second.grad_hidden
    )
    inputs = Inputs.random(JANUS, [5, 3, 3], torch.float32)
    return difference(whole, inputs.exact().walk(eager.walk, VocabShard(SIZE)))


def case(
    compare: Callable[[Inputs], Numbers], terms: Terms, lengths: list[int], dtype: torch.dtype
) -> Callable[[], Numbers]:
    """A comparison with random inputs."""
    return lambda: compare(Inputs.random(terms, lengths, dtype))


CASES: dict[str, Callable[[], Numbers]] = {
    "float64": case(beside_autograd, JANUS, [5, 3, 3], torch.float64),
    "float32": case(beside_eager, JANUS, [5, 3, 3], torch.float32),
    "R-Drop": case(beside_eager, both_draws(JANUS), [2, 1, 1, 2, 1, 1], torch.float32),
    "one stream, no smoothing": case(beside_eager, Terms(("ar",), ()), [4], torch.float32),
    "nothing masked": case(beside_eager, JANUS, [2, 0, 0], torch.float32),
    "padding": padded,
    "bfloat16": bfloat16,
    "streams that nearly agree": near_streams,
    "two ranks": two_ranks,
}


def main() -> None:
    """Run all cases in chunks of few rows."""
    chunks.CUDA_ELEMENTS = CHUNK_ROWS * SIZE
    print(json.dumps({name: compare() for name, compare in CASES.items()}))


if __name__ == "__main__":
    main()
