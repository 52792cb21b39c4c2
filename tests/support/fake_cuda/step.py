"""Training steps of every objective on fake CUDA tensors: `python -m tests.support.fake_cuda.step LIBRARY`.

Prints a JSON object: for each case an empty string, or what went wrong and where.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.fake_cuda.build import load_device

if __name__ == "__main__":
    load_device(Path(sys.argv[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model import flex
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives import ctc_kernel
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.fused_loss import VocabShard, kernels
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.packing.buffer import map_leaves
from tests.support.fake_cuda.cases import CASES, Case
from tests.support.triton.launches import recorded

DEVICE = torch.device("cuda", 0)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask, is_grouped: bool
) -> Tensor:
    """FlexAttention's operator itself, as the compiler sees it: nothing is compiled here."""
    assert not is_grouped, "the operator repeats no heads"
    keep_scores = flex_attention._identity  # type: ignore[attr-defined]
    scale = queries.shape[-1] ** -0.5
    output: Tensor = flex_attention.flex_attention_hop(
        queries, keys, values, keep_scores, mask.as_tuple(), scale, {}
    )[0]
    return output


def real_batch(model: ModelConfig, objective: ObjectiveConfig, prepared: bool) -> Batch:
    """Random samples of several lengths with the objective's own noise, on the CPU."""
    rng = np.random.default_rng(0)

    def example() -> Any:
        tokens = rng.integers(5, model.vocab_size, int(rng.integers(20, model.max_positions - 2)))
        pair = {"text": tokens, "source": tokens, "target": tokens[::-1].copy()}
        wanted = ("text",) if objective.masking.kind == "infill" else ("source", "target")
        fields = {name: pair[name] for name in wanted}
        return make_example(fields, rng, model=model, objective=objective)

    examples = [example() for _ in range(4)]
    return collate_examples(examples, objective, model if prepared else None)


def run(case: Case) -> None:
    """Two steps with AdamW and an evaluation, all on the fake device."""
    model_config = ModelConfig.model_validate(case.model)
    objective = ObjectiveConfig.model_validate(case.objective)
    batch = real_batch(model_config, objective, case.prepared)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    on_cpu = map_leaves(batch, Tensor, mode.from_tensor)
    with mode:
        on_device = map_leaves(on_cpu, Tensor, lambda t: t.to(DEVICE, non_blocking=True))
        module = build_module(model_config, objective, case.dtype)
        module.model.recompute_activations(case.recompute)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        coefficients = torch.ones(len(module.loss.names), device=DEVICE)
        for step in range(2):
            module.model.seed_dropout((1, step, 0))
            total, sums = module(on_device, coefficients)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert total.device == sums.device == DEVICE
        with torch.no_grad():
            module.eval()(on_device, coefficients)


def build_module(
    model: ModelConfig, objective: ObjectiveConfig, dtype: torch.dtype
) -> TrainingModule:
    """The module on the device. Made there: a fake parameter cannot be moved."""
    torch.set_default_dtype(dtype)
    with DEVICE:
        transformer = JanusTransformer(model)
    torch.set_default_dtype(torch.float32)
    loss = ObjectiveLoss(objective, VocabShard(model.vocab_size))
    module: nn.Module = TrainingModule(transformer, loss)
    assert isinstance(module, TrainingModule)
    return module.train()


def read_a_value(x: Tensor) -> None:
    """Makes the host wait."""
    float(x.sum())


def make_a_shape_of_data(x: Tensor) -> None:
    """Makes the host wait."""
    x[x > 0]


def mix_devices(x: Tensor) -> None:
    """Fails on a GPU."""
    x + torch.ones(3, device="cpu")


FAULTS = {
    "a value is read": read_a_value,
    "a shape is made of data": make_a_shape_of_data,
    "devices are mixed": mix_devices,
}
"""Faults that must be seen, else the steps prove nothing."""


def run_fault(fault: Callable[[Tensor], None]) -> None:
    """Run one on a fake tensor."""
    with FakeTensorMode():
        fault(torch.ones(3, device=DEVICE))


def problem(error: Exception) -> str:
    """What was raised, and the places in our code, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/janus_pt/" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-3:])]
    first_line = str(error).split("\n")[0]
    return f"{type(error).__name__}: {first_line} at {' <- '.join(places)}"


def main() -> None:
    """Run all cases."""
    flex._compiled = lambda *_: attend
    problems = {}
    tries = {name: partial(run, case) for name, case in CASES.items()}
    tries |= {name: partial(run_fault, fault) for name, fault in FAULTS.items()}
    for name, attempt in tries.items():
        try:
            # A kernel cannot read a fake tensor: launches are taken and not made.
            with recorded(kernels), recorded(ctc_kernel):
                attempt()
        except Exception as error:
            problems[name] = problem(error)
        else:
            problems[name] = ""
    print(json.dumps(problems))


if __name__ == "__main__":
    main()
