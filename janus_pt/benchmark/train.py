"""`launchers/benchmark.py train`: a step of ours beside a plain left-to-right step of the same shape.

Protocol: both in one process, in turns, median of repeats; forward and backward pass, without the optimizer; random
tokens. Peak memory is that of a process that only takes our steps.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus_pt.benchmark.case import (
    Case,
    config_case,
    make_batch,
    make_module,
    shape_case,
    step_coefficients,
)
from janus_pt.benchmark.timing import medians, now, peak_memory_mb
from janus_pt.benchmark.yardstick import Yardstick
from janus_pt.model.cost import Workload
from janus_pt.objectives.loss import TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.planning.flops import CONTENT_READ, flops_per_step, peak_flops

PART_REPEATS = 5
MEMORY_STEPS = 3


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line after `train`."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py train", description=__doc__.partition("\n\n")[0]
    )
    add_case(parser)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--profile", metavar="FILE", help="write a trace of one step, for chrome://tracing"
    )
    return parser.parse_args(arguments)


def add_case(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what is measured, and where the numbers go."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=("small", "large"), default="small", help="small: 8,000 tokens in the "
                      "vocabulary, 32 pairs of 32 tokens; large: 50,000, 8 pairs of 128")  # fmt: skip
    what.add_argument(
        "--config", metavar="FILE", help="a micro-batch of this configuration, instead"
    )
    parser.add_argument("--ar-stream", choices=("query", "content"), help="what P_AR is read off")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--json", metavar="FILE", help="write the numbers")


def read_case(asked: argparse.Namespace) -> Case:
    """The case that the command line names."""
    torch.set_num_threads(asked.threads)
    if asked.config:
        return config_case(asked.config, asked.ar_stream)
    return shape_case(asked.shape, asked.ar_stream or "query")


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    asked = parse(arguments)
    case = read_case(asked)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(case, device, asked.repeats, asked.threads)
    print_table(case, device, found, asked.threads)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n")
    if asked.profile:
        with torch.profiler.profile() as profile:
            Step(case, device)()
        profile.export_chrome_trace(asked.profile)


class Step:
    """Forward and backward pass of one batch, every time with other dropout."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.module: TrainingModule = make_module(case, device)
        self.batch: Batch = make_batch(case).to(device)
        self.coefficients = step_coefficients(self.module, self.batch)
        self.number = 0

    def begin(self) -> None:
        """What comes before the forward pass."""
        self.number += 1
        self.module.model.seed_dropout((0, self.number, 0))
        self.module.zero_grad()

    def __call__(self) -> Tensor:
        """Take the step; the loss."""
        self.begin()
        loss, _ = self.module(self.batch, self.coefficients)
        loss.backward()
        return loss.detach()


def yardstick(case: Case, device: torch.device) -> Callable[[], None]:
    """A step of the plain model on as many tokens."""
    model = Yardstick(case.model).to(device, case.dtype).train()
    shape = case.samples, case.sizes.target
    target = torch.randint(5, case.model.vocab_size, shape, device=device)
    source = torch.randint(
        5, case.model.vocab_size, (case.samples, round(case.sizes.source)), device=device
    )

    def step() -> None:
        model.zero_grad()
        model(source, target).backward()

    return step


def measure(case: Case, device: torch.device, repeats: int, threads: int) -> dict[str, Any]:
    """All numbers of the JSON file."""
    step = Step(case, device)
    ours, plain = medians([step, yardstick(case, device)], repeats, device)
    flops = step_flops(case, step.batch)
    found = {
        "step_s": ours,
        "yardstick_step_s": plain,
        "ratio": ours / plain,
        "tokens_per_s": case.target_tokens / ours,
        "slots": slots_of_a_sample(case, step.batch),
        "flops": flops,
        "peak_rss_mb": peak_memory_mb(take_steps, case, threads),
        "parts": {**step_parts(step, device), **other_parts(case, step, device)},
    }
    if device.type == "cuda":
        found["mfu"] = flops / ours / peak_flops(device, case.dtype)
    return found


def take_steps(case: Case, threads: int) -> None:
    """A few steps of ours and nothing else."""
    torch.set_num_threads(threads)
    step = Step(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for _ in range(MEMORY_STEPS):
        step()


def step_parts(step: Step, device: torch.device) -> dict[str, float]:
    """Seconds of encoder, decoder and losses in a step, forward and backward: the mean of some steps."""
    seconds = torch.tensor([part_seconds(step, device) for _ in range(PART_REPEATS)]).mean(0)
    return dict(zip(("encoder", "decoder", "losses"), seconds.tolist(), strict=True))


def part_seconds(step: Step, device: torch.device) -> tuple[float, float, float]:
    """The same of one step. The backward pass is divided where the gradient of what a part hands on is ready."""
    step.begin()
    model, batch, backward = step.module.model, step.batch, list[float]()
    start = now(device)
    encoded = model.encode(batch.source)
    encoded.register_hook(lambda _: backward.append(now(device)))
    encoded_at = now(device)
    hidden = model.decode(batch.slots, encoded, batch.source)
    hidden.register_hook(lambda _: backward.append(now(device)))
    decoded_at = now(device)
    lengths, weight = (
        model.length_logits(encoded, batch.source),
        model.embed_tokens.get_parameter("weight"),
    )
    loss, _ = step.module.loss(hidden, lengths, weight, batch, step.coefficients)
    loss.backward()
    losses_back, decoder_back = backward
    encoder = encoded_at - start + now(device) - decoder_back
    return encoder, decoded_at - encoded_at + decoder_back - losses_back, losses_back - decoded_at


def other_parts(case: Case, step: Step, device: torch.device) -> dict[str, float]:
    """Seconds of the update and of building a batch, which workers do beside the steps."""
    optimizer = torch.optim.AdamW(step.module.parameters(), fused=device.type == "cuda")
    update, data = medians([optimizer.step, lambda: make_batch(case)], PART_REPEATS, device)
    return {"optimizer": update, "data": data}


def step_flops(case: Case, batch: Batch) -> float:
    """Operations that the step needs: see `flops_per_step`."""
    real, samples = batch.slots.samples[0] >= 0, case.samples * case.objective.draws
    content = int(real[: batch.slots.num_content].sum())
    predicted = sum(len(index) for index in batch.predict.values())
    work = Workload(
        source_tokens=int((batch.source.samples >= 0).sum()),
        content_slots=content,
        query_slots=int(real.sum()) - content,
        predicted_slots=predicted,
        source_length=case.sizes.source,
        content_length=CONTENT_READ * content / samples,
    )
    return flops_per_step(case.model, work)


def slots_of_a_sample(case: Case, batch: Batch) -> int:
    """Mean number of a sample's slots, padding left out."""
    return round(int((batch.slots.samples >= 0).sum()) / (case.samples * case.objective.draws))


def print_table(case: Case, device: torch.device, found: dict[str, Any], threads: int) -> None:
    """The numbers for people."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {threads} threads"
    )
    print(f"{name}, torch {torch.__version__}, {str(case.dtype).removeprefix('torch.')}")
    print(
        f"{case.samples} pairs, {case.sizes.target - 1} tokens each, {found['slots']} decoder slots a sample"
    )
    for key in (
        "step_s",
        "yardstick_step_s",
        "ratio",
        "tokens_per_s",
        "peak_rss_mb",
        "flops",
        "mfu",
    ):
        if key in found:
            print(f"{key:20}{found[key]:>12.4g}")
    for part, seconds in found["parts"].items():
        print(f"  {part:18}{seconds:>12.4f} s {seconds / found['step_s']:>7.1%} of a step")
