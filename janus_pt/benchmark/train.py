"""A training step of ours beside a plain left-to-right step of the same shape.

Both run in one process by turns, and the median of the repeats counts: forward and backward pass
without the optimizer, on random tokens. Peak memory is measured in a process that only takes our steps.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from janus_pt.benchmark.against import add_against_flags, compare_steps
from janus_pt.benchmark.case import (
    FIRST_TOKEN,
    Case,
    config_case,
    make_batch,
    make_module,
    shape_case,
    step_coefficients,
)
from janus_pt.benchmark.timing import available_device, medians, now, peak_memory_mb
from janus_pt.benchmark.yardstick import Yardstick
from janus_pt.model.cost import Workload
from janus_pt.objectives.loss import TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.planning.flops import CONTENT_READ, flops_per_step
from janus_pt.planning.peaks import peak_flops
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import write_json

PART_REPEATS = 5
MEMORY_STEPS = 3
SHOWN = ("step_s", "yardstick_step_s", "ratio", "tokens_per_s", "peak_rss_mb", "flops", "mfu")
"""Numbers of the table, in its order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmark.py train`."""
    add_case_arguments(parser)
    parser.add_argument("--repeats", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument(
        "--profile", metavar="FILE", help="write a trace of one step, for chrome://tracing"
    )
    add_against_flags(parser)


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what is measured, and the file for the numbers."""
    case = parser.add_mutually_exclusive_group()
    case.add_argument(
        "--shape",
        choices=("small", "large"),
        default="small",
        help="small: 8,000 tokens in the vocabulary, 32 pairs of 32 tokens; large: 50,000, 8 "
        "pairs of 128 (default: %(default)s)",
    )
    case.add_argument(
        "--config", metavar="FILE", help="a micro-batch of this configuration instead"
    )
    parser.add_argument(
        "--ar-stream", choices=("query", "content"), help="slots that P_AR is read from"
    )
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (default: %(default)s)")
    add_json_flag(parser, "file for the numbers")


def read_case(args: argparse.Namespace) -> Case:
    """The case that the command line names."""
    torch.set_num_threads(args.threads)
    if args.config:
        return config_case(args.config, args.ar_stream)
    return shape_case(args.shape, args.ar_stream or "query")


def run(args: argparse.Namespace) -> None:
    """Measure and print, or compare with another checkout."""
    if args.against:
        compare_steps(args)
        return
    case = read_case(args)
    device = available_device()
    # The profile, if asked for, is of another step: profiling makes it slower.
    numbers = measure(case, device, args.repeats, args.threads)
    print_numbers_of_step(case, device, numbers, args.threads)
    if args.json:
        write_json(args.json, numbers)
    if args.profile:
        with torch.profiler.profile() as profile:
            TrainingStep(case, device)()
        profile.export_chrome_trace(args.profile)


class TrainingStep:
    """Forward and backward pass of one batch, every time with other dropout."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.module: TrainingModule = make_module(case, device)
        self.batch: Batch = make_batch(case).to(device)
        self.coefficients = step_coefficients(self.module, self.batch)
        self.number = 0

    def begin(self) -> None:
        """Do what comes before the forward pass."""
        self.number += 1
        # Dropout is a function of seed, step and layer: as in training, each step has its own.
        self.module.model.seed_dropout((0, self.number, 0))
        self.module.zero_grad()

    def __call__(self) -> Tensor:
        """Take the step; returns the loss."""
        self.begin()
        loss, _ = self.module(self.batch, self.coefficients)
        loss.backward()
        return loss.detach()


def yardstick_step(case: Case, device: torch.device) -> Callable[[], None]:
    """A step of the plain model on as many tokens."""
    model = Yardstick(case.model).to(device, case.dtype).train()
    target_shape = (case.samples, case.sizes.target)
    source_shape = (case.samples, round(case.sizes.source))
    target = torch.randint(FIRST_TOKEN, case.model.vocab_size, target_shape, device=device)
    source = torch.randint(FIRST_TOKEN, case.model.vocab_size, source_shape, device=device)

    def step() -> None:
        # Our step begins in the same way: zeroing counts for both or for none.
        model.zero_grad()
        model(source, target).backward()

    return step


def measure(case: Case, device: torch.device, repeats: int, threads: int) -> dict[str, Any]:
    """All numbers of the JSON file: seconds, tokens/s, MiB, operations, and `parts` in seconds."""
    step = TrainingStep(case, device)
    step_s, yardstick_s = medians([step, yardstick_step(case, device)], repeats, device)
    flops = step_flops(case, step.batch)
    numbers = {
        "step_s": step_s,
        "yardstick_step_s": yardstick_s,
        "ratio": step_s / yardstick_s,
        "tokens_per_s": case.target_tokens / step_s,
        "slots": slots_of_a_sample(case, step.batch),
        "flops": flops,
        "peak_rss_mb": peak_memory_mb(take_steps, case, threads),
        "parts": {**step_parts(step, device), **parts_beside_the_step(case, step, device)},
    }
    peak = peak_flops(device, case.dtype)
    if peak is not None:
        numbers["mfu"] = flops / step_s / peak
    return numbers


def take_steps(case: Case, threads: int) -> None:
    """Take a few steps and nothing else, in the process whose memory is measured."""
    torch.set_num_threads(threads)
    step = TrainingStep(case, available_device())
    for _ in range(MEMORY_STEPS):
        step()


def step_parts(step: TrainingStep, device: torch.device) -> dict[str, float]:
    """Seconds of encoder, decoder and losses, forward and backward: the mean of a few steps."""
    seconds = torch.tensor([_seconds_of_parts(step, device) for _ in range(PART_REPEATS)])
    encoder, decoder, losses = seconds.mean(0).tolist()
    return {"encoder": encoder, "decoder": decoder, "losses": losses}


def _seconds_of_parts(step: TrainingStep, device: torch.device) -> tuple[float, float, float]:
    """Seconds of encoder, decoder and losses in one step, forward and backward.

    The backward pass goes through the parts in reverse. It leaves a part when the gradient of the
    part's input is ready, which a hook on that tensor tells.
    """
    step.begin()
    model, batch = step.module.model, step.batch
    backward_times: list[float] = []
    started = now(device)
    encoded = model.encode(batch.source)
    encoded.register_hook(lambda _: backward_times.append(now(device)))
    encoder_done = now(device)
    hidden = model.decode(batch.slots, encoded, batch.source)
    hidden.register_hook(lambda _: backward_times.append(now(device)))
    decoder_done = now(device)
    length_logits = model.length_logits(encoded, batch.source)
    weight = model.output_weight()
    loss, _ = step.module.loss(hidden, length_logits, weight, batch, step.coefficients)
    loss.backward()
    finished = now(device)
    # The decoder's output gets its gradient first, then the encoder's.
    losses_back, decoder_back = backward_times
    encoder = (encoder_done - started) + (finished - decoder_back)
    decoder = (decoder_done - encoder_done) + (decoder_back - losses_back)
    losses = losses_back - decoder_done
    return encoder, decoder, losses


def parts_beside_the_step(case: Case, step: TrainingStep, device: torch.device) -> dict[str, float]:
    """Seconds of the update, and of building a batch, which workers do during the steps."""
    # Gradients are there from the steps before.
    optimizer = torch.optim.AdamW(step.module.parameters(), fused=device.type == "cuda")
    jobs = [optimizer.step, lambda: make_batch(case)]
    update, data = medians(jobs, PART_REPEATS, device)
    return {"optimizer": update, "data": data}


def step_flops(case: Case, batch: Batch) -> float:
    """Floating-point operations that the step needs, by formula."""
    is_real = batch.slots.samples[0] >= 0
    samples = case.samples * case.objective.draws
    source_tokens = int((batch.source.samples >= 0).sum())
    content_slots = int(is_real[: batch.slots.num_content].sum())
    query_slots = int(is_real.sum()) - content_slots
    predicted = sum(batch.counts.predicted.values())
    work = Workload(
        source_tokens=source_tokens,
        content_slots=content_slots,
        query_slots=query_slots,
        predicted_slots=predicted,
        source_length=case.sizes.source,
        content_length=CONTENT_READ * content_slots / samples,
    )
    return flops_per_step(case.model, work)


def slots_of_a_sample(case: Case, batch: Batch) -> int:
    """Mean number of a sample's slots, without padding."""
    slots = int((batch.slots.samples >= 0).sum())
    return round(slots / (case.samples * case.objective.draws))


def print_numbers_of_step(
    case: Case, device: torch.device, numbers: dict[str, Any], threads: int
) -> None:
    """Print what was measured, on what, and the numbers."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()}, {threads} threads"
    print(f"{machine}, torch {torch.__version__}, {str(case.dtype).removeprefix('torch.')}")
    print(
        f"{case.samples} pairs, {case.sizes.target - 1} tokens each, {numbers['slots']} decoder "
        "slots a sample"
    )
    rows = [[name, f"{numbers[name]:.4g}", ""] for name in SHOWN if name in numbers]
    for part, seconds in numbers["parts"].items():
        share = seconds / numbers["step_s"]
        rows.append([f"- {part}", f"{seconds:.4f} s", f"{share:.1%} of a step"])
    print(format_table(rows, align="lr"))
