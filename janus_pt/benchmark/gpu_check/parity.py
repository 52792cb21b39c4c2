"""The device against the CPU: losses and gradients of every objective; and attention that is not fused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from janus_pt.benchmark.case import Case, make_examples, make_module, step_coefficients
from janus_pt.benchmark.gpu_check.engine import LENGTH, SMALL_MODEL, device_computes
from janus_pt.benchmark.gpu_check.result import NOT_COMPARABLE, SKIPPED, Result, verdict
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.masks import uses_block_masks
from janus_pt.objectives.examples import collate_examples
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch
from janus_pt.parallel import groups

FLOAT32_DIFFERENCE = 1e-4
"""Of loss and gradient, relative: float32 adds in another order on each device."""
BFLOAT16_FACTOR = 3.0
"""The device's bfloat16 may differ from float32 by so many times as much as the CPU's does."""
SAMPLES = 4
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
SMALL_HEADS = {"num_attention_heads": 8}
"""Heads of 8 elements are too small for FlexAttention: their masks are dense."""
UNFUSED = "without torch.compile"
"""Part of torch's warning that FlexAttention writes all scores."""
Step = tuple[float, torch.Tensor]
"""Loss, and all gradients as one vector in float64."""


def objectives() -> Result:
    """Loss and gradient of every objective against float32 on the CPU, in float32 and bfloat16."""
    groups.initialize()
    if not device_computes():
        return Result(NOT_COMPARABLE, "the device computes nothing: sums on it are wrong")
    numbers: dict[str, Any] = {}
    problems = []
    for case in _cases():
        name = case.objective.name
        name += "" if case.model.head_size >= 16 else ", dense masks"
        found = _compare(case)
        numbers[name] = found
        worst = max(found["float32 loss"], found["float32 gradient"])
        if worst > FLOAT32_DIFFERENCE:
            problems.append(f"{name}: float32 differs by {worst:.1e}")
        if found["bfloat16 gradient"] > BFLOAT16_FACTOR * found["bfloat16 gradient on the CPU"]:
            problems.append(
                f"{name}: gradient in bfloat16 differs by {found['bfloat16 gradient']:.1e}"
            )
    message = f"{len(numbers)} cases within {FLOAT32_DIFFERENCE:g} of float32 on the CPU"
    return verdict(problems, message, numbers)


def unfused_attention() -> Result:
    """Steps of training and validation of every objective, in which FlexAttention must stay fused."""
    device = groups.initialize()
    if device.type != "cuda":
        return Result(SKIPPED, "FlexAttention is used on GPUs alone")
    problems = []
    torch._dynamo.reset()
    for case in _cases():
        if case.model.head_size < 16:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module = make_module(case, device)
            # A small batch after a large one asks for other kernels.
            for samples in (case.samples, 1):
                batch = _batch(replace(case, samples=samples), device).to(device)
                scale = step_coefficients(module, batch)
                module(batch, scale)[0].backward()
                with torch.no_grad():
                    module.eval()(batch, scale)
                module.train()
        if any(UNFUSED in str(warning.message) for warning in caught):
            problems.append(f"{case.objective.name}: attention wrote all scores")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return verdict(problems, f"fused in {len(OBJECTIVES)} objectives", {"graphs": graphs})


def _cases() -> list[Case]:
    """A small case for each objective, and one with dense masks."""
    cases = []
    for name in (*OBJECTIVES, "dense"):
        changes = SMALL_HEADS if name == "dense" else {}
        objective = ObjectiveConfig.model_validate({"name": "janus" if name == "dense" else name})
        model = ModelConfig.model_validate({**SMALL_MODEL, **NO_DROPOUT, **changes})
        sizes = sample_sizes(model, objective, LENGTH)
        cases.append(Case(model, objective, SAMPLES, sizes))
    return cases


def _batch(case: Case, device: torch.device) -> Batch:
    on_blocks = uses_block_masks(device, case.model.attention_dropout, case.model.head_size)
    return collate_examples(make_examples(case), case.objective, case.model if on_blocks else None)


def _compare(case: Case) -> dict[str, float]:
    """Relative differences from float32 on the CPU."""
    cpu, device = torch.device("cpu"), groups.device()
    reference = _step(case, cpu)
    low = replace(case, dtype=torch.bfloat16)
    steps = {
        "float32": _step(case, device),
        "bfloat16": _step(low, device),
        "bfloat16 on the CPU": _step(low, cpu),
    }
    found = {}
    for name, (loss, gradient) in steps.items():
        dtype, _, place = name.partition(" ")
        end = f" {place}" if place else ""
        found[f"{dtype} loss{end}"] = abs(loss - reference[0]) / abs(reference[0])
        difference = (gradient - reference[1]).norm() / reference[1].norm()
        found[f"{dtype} gradient{end}"] = float(difference)
    return found


def _step(case: Case, device: torch.device) -> Step:
    module = make_module(case, device)
    module.model.seed_dropout((0, 1, 0))
    batch = _batch(case, device).to(device)
    loss, _ = module(batch, step_coefficients(module, batch))
    loss.backward()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return float(loss), torch.cat(gradients).cpu().double()
