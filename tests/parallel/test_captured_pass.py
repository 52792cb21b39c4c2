"""A pass whose gradients go to the optimizer's sums directly gives the numbers of the module's own.

On a CPU nothing is recorded: what is compared is all that surrounds the recording, and the padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from janus_pt.checks import limit_problems
from janus_pt.config.content import Sections
from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig
from janus_pt.config.run_schema import RunConfig
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.examples import collate_examples
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.packing.buffer import map_leaves
from janus_pt.parallel.captured_pass import CapturedPass
from tests.packing.test_packing import examples
from tests.support.models import tiny_model

LENGTHS = [(7, 9), (3, 4), (10, 6)]


class Sums:
    """Stands for the optimizer's sums."""

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}

    def take(self, parameter: Any, gradient: Tensor) -> None:
        """Add a gradient."""
        key = id(parameter)
        self.of[key] = self.of[key] + gradient if key in self.of else gradient

    def add(self) -> None:
        """Nothing waits."""

    def mark(self, parameters: Iterable[Any]) -> None:
        """Never called: nothing is recorded."""
        raise AssertionError


def training_module(
    name: str, dropout: float = 0.0, r_drop: float = 0.0
) -> tuple[TrainingModule, Sums]:
    settings = {"name": name, "recipe": "translation", "r_drop": r_drop}
    config = ObjectiveConfig.model_validate(settings)
    model = tiny_model(dropout=dropout)
    return TrainingModule(model, ObjectiveLoss(config, VocabShard(24))).train(), Sums()


def step(module: TrainingModule, sums: Sums, for_graphs: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Total and terms, and all gradients, of two micro-batches."""
    coefficients = torch.linspace(0.3, 0.9, len(module.loss.names), dtype=torch.float64)
    numbers = []
    for seed in (0, 1):
        made = examples(module.loss.objective.name, "query", "span", LENGTHS, seed)
        batch = collate_examples(made, module.loss.objective, for_graphs=for_graphs)
        total, terms = module(batch, coefficients)
        total.backward()
        numbers.append(torch.cat((total.detach()[None], terms)))
    gradients = {}
    for name, parameter in module.named_parameters():
        parts = [part for part in (parameter.grad, sums.of.get(id(parameter))) if part is not None]
        if parts:
            gradients[name] = torch.stack(parts).sum(0)
    return torch.stack(numbers), gradients


@pytest.mark.parametrize(
    ("name", "r_drop"),
    [("janus", 0.0), ("janus", 0.5), ("ar", 0.0), ("bang", 0.0), ("bang_nar", 0.0), ("cmlm", 0.0)],
)
def test_losses_and_gradients_are_the_modules(name: str, r_drop: float) -> None:
    plain, no_sums = training_module(name, r_drop=r_drop)
    numbers, gradients = step(plain, no_sums, for_graphs=False)
    module, sums = training_module(name, r_drop=r_drop)
    sums_of: Any = sums
    module.captured_pass = CapturedPass(module, sums_of)
    captured_numbers, captured = step(module, sums, for_graphs=True)
    torch.testing.assert_close(captured_numbers, numbers, rtol=1e-12, atol=1e-12)
    assert captured.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(captured[key], gradient, rtol=1e-9, atol=1e-11, msg=key)
    # All gradients are in the sums, not on the parameters.
    assert all(parameter.grad is None for parameter in module.parameters())


def test_dropout_is_a_function_of_the_seed() -> None:
    module, sums = training_module("janus", dropout=0.3)
    sums_of: Any = sums
    module.captured_pass = CapturedPass(module, sums_of)
    found = []
    for seed in ((1, 2, 3), (1, 2, 3), (1, 2, 4)):
        module.seed_dropout(seed)
        found.append(step(module, sums, for_graphs=True)[0][0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_is_not_recorded_reads_tensors_like_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention is compiled for where a tensor lies: nothing may have to be compiled in a recording."""
    module, sums = training_module("janus")
    sums_of: Any = sums
    module.captured_pass = CapturedPass(module, sums_of)
    read: list[Tensor] = []
    compute = module.compute

    def note(batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        map_leaves((batch, coefficients), Tensor, read.append)
        return compute(batch, coefficients)

    monkeypatch.setattr(module, "compute", note)
    step(module, sums, for_graphs=True)
    assert len(read) > 20
    assert all(tensor._base is None and tensor.storage_offset() == 0 for tensor in read)


MODEL = ModelConfig(vocab_size=100, hidden_size=64, num_attention_heads=2, attention_dropout=0.0)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, None),
        ({"parallel": ParallelConfig(tensor_parallel_size=2)}, "tensor_parallel_size"),
        ({"parallel": ParallelConfig(zero_stage=3)}, "parallel.zero_stage"),
        ({"parallel": ParallelConfig(activation_checkpointing="all")}, "activation_checkpointing"),
        ({"precision": PrecisionConfig(dtype="float32")}, "precision.dtype"),
        ({"model": MODEL.model_copy(update={"attention_dropout": 0.1})}, "attention_dropout"),
        ({"model": MODEL.model_copy(update={"activation_dropout": 0.1})}, "activation_dropout"),
        ({"objective": ObjectiveConfig.model_validate({"name": "cmlmc"})}, '"cmlmc"'),
        ({"objective": ObjectiveConfig.model_validate({"name": "ctc"})}, '"ctc"'),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes: dict[str, Any], key: str | None) -> None:
    sections: dict[str, Any] = {
        "model": MODEL,
        "parallel": ParallelConfig(),
        "precision": PrecisionConfig(dtype="bfloat16"),
        "objective": ObjectiveConfig.model_validate({}),
        "run": RunConfig(output_dir="none", max_steps=1, cuda_graphs=True),
    }
    found = [
        reason
        for path, reason in limit_problems(Sections(**{**sections, **changes}), None)
        if path == ("run", "cuda_graphs")
    ]
    assert len(found) == (key is not None)
    assert key is None or key in found[0]
