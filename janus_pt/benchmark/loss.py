"""The fused projection and losses beside the same losses computed from whole logits.

Hidden states are random; forward and backward pass by turns, median of the repeats. Peak memory is
measured in a process that does only one of the two.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_pt.benchmark.case import SEED, Case, make_batch
from janus_pt.benchmark.timing import available_device, medians, peak_memory_mb, print_numbers
from janus_pt.benchmark.train import add_case_arguments, read_case
from janus_pt.objectives.fused_loss import Terms, VocabShard, fused_losses
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.utils.text_files import write_json

MEMORY_STEPS = 3
Streams = dict[str, Tensor]
"""Stream -> `[rows, hidden]`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmark.py loss`."""
    add_case_arguments(parser)
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    case = read_case(args)
    device = available_device()
    fused = LossStep(case, device, fused=True)
    unfused = LossStep(case, device, fused=False)
    fused_s, unfused_s = medians([fused, unfused], args.repeats, device)
    numbers = {
        "fused_s": fused_s,
        "unfused_s": unfused_s,
        "fused_peak_mb": peak_memory_mb(take_steps, case, True, args.threads),
        "unfused_peak_mb": peak_memory_mb(take_steps, case, False, args.threads),
        "predicted_slots": sum(len(hidden) for hidden in fused.hidden.values()),
    }
    print_numbers(numbers)
    if args.json:
        write_json(args.json, numbers)


class LossStep:
    """All terms of a case's batch and their gradients, fused or not."""

    def __init__(self, case: Case, device: torch.device, fused: bool) -> None:
        batch = make_batch(case)
        generator = torch.Generator().manual_seed(SEED)
        size = case.model.hidden_size

        def random_leaf(rows: int, std: float) -> Tensor:
            values = torch.randn(rows, size, generator=generator) * std
            return values.to(device, case.dtype).requires_grad_()

        self.hidden: Streams = {
            stream: random_leaf(len(index), 1.0) for stream, index in batch.predict.items()
        }
        self.weight = random_leaf(case.model.vocab_size, case.model.init_std)
        self.targets = batch.targets.to(device)
        self.terms = OBJECTIVES[case.objective.name].terms(case.objective)
        weight = 1 / len(batch.targets)
        self.coefficients = torch.full((len(self.terms.names),), weight, device=device)
        self.fused = fused

    def __call__(self) -> Tensor:
        """Compute the weighted sum of all terms and its gradients; returns the sum."""
        for leaf in (self.weight, *self.hidden.values()):
            leaf.grad = None
        if self.fused:
            total = self._fused_total()
        else:
            sums = unfused_losses(self.hidden, self.weight, self.targets, self.terms)
            total = self.coefficients @ sums
        total.backward()
        return total.detach()

    def _fused_total(self) -> Tensor:
        vocab = VocabShard(len(self.weight))
        return fused_losses(
            self.hidden, self.weight, self.targets, self.coefficients, self.terms, vocab
        )[0]


def unfused_losses(hidden: Streams, weight: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """Every term's sum from the log-softmax of all logits, written in the plainest way.

    Args:
        hidden: rows of each stream that predict, the first `len(rows)` targets in order.
        weight: `[vocab, hidden]`.
        targets: `[targets]`.

    Returns:
        `[terms]`: cross-entropies of the streams, then divergences of the pairs.
    """
    log_p = {}
    for stream, rows in hidden.items():
        # In float32, as the fused losses accumulate.
        logits = (rows @ weight.t()).float()
        log_p[stream] = F.log_softmax(logits, dim=-1)
    smoothing = terms.label_smoothing
    sums = []
    for stream in terms.streams:
        rows = log_p[stream]
        log_p_target = rows.gather(1, targets[: len(rows), None]).sum()
        log_p_uniform = rows.mean(-1).sum()
        sums.append(-(1 - smoothing) * log_p_target - smoothing * log_p_uniform)
    for a, b in terms.pairs:
        # Both streams predict the same targets in their first rows.
        shared = min(len(hidden[a]), len(hidden[b]))
        log_p_a, log_p_b = log_p[a][:shared], log_p[b][:shared]
        # J = (KL(p||q) + KL(q||p)) / 2, summed over the rows.
        sums.append(0.5 * ((log_p_a.exp() - log_p_b.exp()) * (log_p_a - log_p_b)).sum())
    return torch.stack(sums)


def take_steps(case: Case, fused: bool, threads: int) -> None:
    """Take a few steps of one of the two and nothing else, where memory is measured."""
    torch.set_num_threads(threads)
    step = LossStep(case, available_device(), fused)
    for _ in range(MEMORY_STEPS):
        step()
