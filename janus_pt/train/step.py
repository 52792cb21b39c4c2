"""One training step: global counts, coefficients, forward and backward of every micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config import ObjectiveConfig
from janus_pt.losses import Terms, VocabShard, fused_losses
from janus_pt.model.janus import JanusTransformer
from janus_pt.objectives import janus
from janus_pt.objectives.batch import Batch

SIZES = ("source_tokens", "content_slots", "query_slots", "predicted_slots", "target_tokens", "sentences")
"""What is counted of each batch besides the rows of its loss terms; padding left out."""


class TrainingModule(nn.Module):
    """The model with its objective: batch and coefficients in, weighted total and the sum of every term out."""

    def __init__(self, model: JanusTransformer, objective: ObjectiveConfig, vocab: VocabShard) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.terms: Terms = janus.terms(objective)
        self.vocab = vocab

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, the length cross-entropy last."""
        return (*self.terms.names, "loss/length")

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The total `coefficients · sums` (differentiable), and the sums `[terms]`."""
        hidden, length_logits = self.model(batch.source, batch.slots)
        slots = hidden.flatten(0, 1)
        streams = {name: slots.index_select(0, index) for name, index in batch.predict.items()}
        weight = self.model.embed_tokens.get_parameter("weight")
        total, sums = fused_losses(streams, weight, batch.targets, coefficients[:-1], self.terms, self.vocab)
        classes = batch.lengths.clamp(max=length_logits.shape[1] - 1)
        length = F.cross_entropy(length_logits.to(sums.dtype), classes, reduction="sum")
        return total + coefficients[-1] * length, torch.cat((sums, length.detach()[None]))


@dataclass
class StepResult:
    """Sums of the terms and counts of one step on this rank (`sums`) and over the job (`counts`), on the device."""

    sums: Tensor
    counts: Tensor


def batch_counts(batch: Batch, terms: Terms) -> list[int]:
    """Rows of every loss term (length last), then `SIZES`."""
    rows = {name: len(index) for name, index in batch.predict.items()}
    sentences = len(batch.lengths)
    per_term = [rows[s] for s in terms.streams] + [min(rows[a], rows[b]) for a, b in terms.pairs] + [sentences]
    real = batch.slots.samples >= 0
    content = int(real[:, : batch.slots.num_content].sum())
    sizes = [int((batch.source.samples >= 0).sum()), content, int(real.sum()) - content, sum(rows.values())]
    return [*per_term, *sizes, len(batch.targets), sentences]


def global_counts(batches: Sequence[Batch], terms: Terms, device: torch.device, group: Any) -> Tensor:
    """Counts over all `batches` of all data-parallel ranks, float64 on the device; all of `group` take part."""
    counted = [[0] * (len(terms.names) + 1 + len(SIZES)), *(batch_counts(b, terms) for b in batches)]
    counts = torch.tensor(counted, dtype=torch.float64).sum(0).to(device)
    dist.all_reduce(counts, group=group)
    return counts


def coefficients(objective: ObjectiveConfig, counts: Tensor) -> Tensor:
    """Weight over global count of every term: the loss is a mean over the whole step, however it is split."""
    terms = len(janus.terms(objective).names)
    weights = counts.new_tensor([*janus.weights(objective), objective.length])
    normalisers = counts[: terms + 1].clone()
    if objective.normalize_by == "tokens":
        normalisers[:terms] = counts[terms + 1 + SIZES.index("target_tokens")]
    return (weights / normalisers.clamp(min=1)).float()


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Make dropout a pure function of these four numbers, so that there is no generator state to save."""
    state = np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def train_step(engine: Any, batches: Sequence[Batch], step: int, seed: int, group: Any) -> StepResult:
    """Forward, backward and update; nothing in here waits for the device.

    DeepSpeed averages gradients over data-parallel ranks and micro-batches, so the coefficients are multiplied by
    both numbers. All ranks take part.
    """
    module: TrainingModule = engine.module
    counts = global_counts(batches, module.terms, engine.device, group)
    ranks = dist.get_world_size(group)
    scaled = coefficients(module.objective, counts) * (ranks * len(batches))
    sums = torch.zeros_like(scaled)
    for index, batch in enumerate(batches):
        seed_dropout(seed, step, index, dist.get_rank(group))
        loss, parts = engine(batch.to(engine.device), scaled)
        engine.backward(loss)
        engine.step()
        sums += parts
    return StepResult(sums, counts)


@torch.no_grad()
def evaluate(engine: Any, batches: Iterable[Batch | None], group: Any) -> StepResult:
    """Sums of all terms over this rank's validation batches, dropout off; all of `group` take part."""
    module: TrainingModule = engine.module
    zeros = torch.zeros(len(module.names), device=engine.device)
    sums = zeros.clone()
    local = [batch for batch in batches if batch is not None]
    module.eval()
    for batch in local:
        sums += module(batch.to(engine.device), zeros)[1]
    module.train()
    return StepResult(sums, global_counts(local, module.terms, engine.device, group))


def report(module: TrainingModule, result: StepResult, group: Any) -> dict[str, float]:
    """The step's numbers over the whole job: `loss/total`, every term's mean over its own rows, and `SIZES`.

    Waits for the device; all of `group` take part.
    """
    sums = result.sums.double()
    dist.all_reduce(sums, group=group)
    total = float(coefficients(module.objective, result.counts).double() @ sums)
    rows = result.counts[: len(module.names)].clamp(min=1)
    named = dict(zip(module.names, (sums / rows).tolist(), strict=True))
    sizes = dict(zip(SIZES, result.counts[len(module.names) :].tolist(), strict=True))
    return {"loss/total": total, **named, **sizes}
