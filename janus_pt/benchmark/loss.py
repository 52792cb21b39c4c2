"""`launchers/benchmark.py loss`: the fused projection and losses beside the same losses from whole logits.

Hidden states are random; forward and backward pass, in turns, median of repeats. Peak memory is that of a process
that does only one of the two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_pt.benchmark.case import SEED, Case, make_batch
from janus_pt.benchmark.timing import medians, peak_memory_mb
from janus_pt.benchmark.train import add_case, read_case
from janus_pt.objectives.fused_loss import Terms, VocabShard, fused_losses
from janus_pt.objectives.table import OBJECTIVES

Streams = dict[str, Tensor]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py loss", description=__doc__.partition("\n\n")[0]
    )
    add_case(parser)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args(arguments)
    case = read_case(asked)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = [Losses(case, device, fused) for fused in (True, False)]
    fused, unfused = medians(steps, asked.repeats, device)
    memory = [peak_memory_mb(take_steps, case, kind, asked.threads) for kind in (True, False)]
    found = {
        "fused_s": fused,
        "unfused_s": unfused,
        "fused_peak_mb": memory[0],
        "unfused_peak_mb": memory[1],
    }
    found["predicted_slots"] = sum(len(h) for h in steps[0].hidden.values())
    for key, value in found.items():
        print(f"{key:20}{value:>12.4g}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n")


class Losses:
    """All terms of a case's batch and their gradients."""

    def __init__(self, case: Case, device: torch.device, fused: bool) -> None:
        batch = make_batch(case)
        generator = torch.Generator().manual_seed(SEED)
        size = case.model.hidden_size

        def leaf(rows: int, std: float) -> Tensor:
            values = torch.randn(rows, size, generator=generator) * std
            return values.to(device, case.dtype).requires_grad_()

        self.hidden: Streams = {
            stream: leaf(len(index), 1.0) for stream, index in batch.predict.items()
        }
        self.weight = leaf(case.model.vocab_size, case.model.init_std)
        self.targets = batch.targets.to(device)
        self.terms = OBJECTIVES[case.objective.name].terms(case.objective)
        self.coefficients = torch.full(
            (len(self.terms.names),), 1 / len(batch.targets), device=device
        )
        self.fused = fused

    def __call__(self) -> Tensor:
        """Take the step; the total."""
        for leaf in (self.weight, *self.hidden.values()):
            leaf.grad = None
        vocab = VocabShard(len(self.weight))
        if self.fused:
            total = fused_losses(
                self.hidden, self.weight, self.targets, self.coefficients, self.terms, vocab
            )[0]
        else:
            total = self.coefficients @ unfused_losses(
                self.hidden, self.weight, self.targets, self.terms
            )
        total.backward()
        return total.detach()


def unfused_losses(hidden: Streams, weight: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """Every term's sum from log-softmax of all logits, as anybody would write it."""
    log_p = {
        stream: F.log_softmax((h @ weight.t()).float(), dim=-1) for stream, h in hidden.items()
    }
    sums = []
    for stream in terms.streams:
        own = log_p[stream].gather(1, targets[: len(log_p[stream]), None]).sum()
        sums.append(
            (terms.label_smoothing - 1) * own - terms.label_smoothing * log_p[stream].mean(-1).sum()
        )
    for a, b in terms.pairs:
        rows = min(len(hidden[a]), len(hidden[b]))
        p, q = log_p[a][:rows], log_p[b][:rows]
        sums.append(0.5 * ((p.exp() - q.exp()) * (p - q)).sum())
    return torch.stack(sums)


def take_steps(case: Case, fused: bool, threads: int) -> None:
    """A few steps of one of the two and nothing else."""
    torch.set_num_threads(threads)
    step = Losses(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"), fused)
    for _ in range(3):
        step()
