"""The objective's loss over hidden states, and the model with its loss as one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.model.dropout import Seed
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.fused_loss import Terms, VocabShard, fused_losses
from janus_pt.objectives.r_drop import both_draws, weights_of_both_draws
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import PADDING_NUMBER, Batch


class CapturedPass(Protocol):
    """`parallel.captured_pass.CapturedPass`, as far as it is used here."""

    def seed_dropout(self, seed: Seed) -> None:
        """As of the model."""

    def __call__(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The module's forward pass."""


@dataclass(frozen=True)
class ObjectiveLoss:
    """From hidden states to the weighted total and the sum of every term; `vocab` is this rank's
    rows of the table."""

    objective: ObjectiveConfig
    vocab: VocabShard

    @property
    def terms(self) -> Terms:
        """The terms over slots; with R-Drop the terms of both draws, and the divergences between
        them."""
        terms = OBJECTIVES[self.objective.name].terms(self.objective)
        return terms if self.objective.draws == 1 else both_draws(terms)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, the length cross-entropy last."""
        return (*self.terms.names, "loss/length")

    @property
    def weights(self) -> list[float]:
        """Weights of the terms, in the order of `names`."""
        objective = OBJECTIVES[self.objective.name]
        weights = list(objective.weights(self.objective))
        if self.objective.draws == 1:
            return weights
        num_streams = len(objective.terms(self.objective).streams)
        return weights_of_both_draws(weights, num_streams, self.objective.r_drop)

    def __call__(
        self,
        hidden: Tensor,
        length_logits: Tensor,
        weight: Tensor,
        batch: Batch,
        coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The total `coefficients · sums` (differentiable), and the sums `[terms]`.

        All tensor-parallel ranks take part.

        Args:
            hidden: of the slots from the first that predicts on, `[1, slots, hidden]`.
            length_logits: of the samples of all draws, `[samples, length_classes]`.
            weight: this rank's rows of the embedding, with the output bias (`model.output_weight`).
            coefficients: `[terms]`, the length's last.
        """
        slots = hidden.flatten(0, 1)
        # One selection for all streams: in the backward pass each would fill a tensor of all slots.
        lengths = [len(index) for index in batch.predict.values()]
        rows = slots.index_select(0, torch.cat(list(batch.predict.values()))).split(lengths)
        streams = dict(zip(batch.predict, rows, strict=True))
        total, sums = self._over_slots(streams, weight, batch, coefficients[:-1])
        # Longer targets than the head has classes for count as the longest.
        classes = batch.lengths.clamp(max=length_logits.shape[1] - 1)
        # In the dtype of the other sums: with bfloat16 a sum over sentences would lose its digits.
        logits = length_logits.to(sums.dtype)
        length = F.cross_entropy(logits, classes, reduction="sum", ignore_index=PADDING_NUMBER)
        # With two draws there are two predictions of each length, and the term is their mean.
        length = length / self.objective.draws
        return total + coefficients[-1] * length, torch.cat((sums, length.detach()[None]))

    def _over_slots(
        self, streams: Mapping[str, Tensor], weight: Tensor, batch: Batch, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The total and the sums of the terms over slots."""
        terms = self.terms
        targets = batch.targets
        if terms.aligned_stream is not None:
            return self._aligned(streams[terms.aligned_stream], weight, batch, coefficients)
        # The usual case: all streams begin at the first target, and one walk does them all.
        if not terms.suffix_streams:
            return fused_losses(streams, weight, targets, coefficients, terms, self.vocab)
        coefficient = dict(zip(terms.names, coefficients.unbind(0), strict=True))
        total = torch.zeros_like(coefficients[0])
        sums: dict[str, Tensor] = {}
        for first, part in _parts_by_first_target(terms, streams, len(targets)).items():
            rows = {name: streams[name] for name in part.streams}
            # Stacked on the device: indexing by a list would copy the list there and wait.
            part_coefficients = torch.stack([coefficient[name] for name in part.names])
            part_total, part_sums = fused_losses(
                rows, weight, targets[first:], part_coefficients, part, self.vocab
            )
            total = total + part_total
            sums.update(zip(part.names, part_sums.unbind(0), strict=True))
        return total, torch.stack([sums[name] for name in terms.names])

    def _aligned(
        self, rows: Tensor, weight: Tensor, batch: Batch, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of an objective whose one stream is aligned with its tokens."""
        alignment_loss = OBJECTIVES[self.objective.name].alignment_loss
        assert alignment_loss is not None, "the objective has an aligned stream, but no loss of it"
        assert batch.alignment is not None, "the batch was collated without its alignment"
        loss = alignment_loss(rows, weight, batch.alignment, self.vocab)[None]
        return coefficients @ loss, loss.detach()


def _parts_by_first_target(
    terms: Terms, streams: Mapping[str, Tensor], num_targets: int
) -> dict[int, Terms]:
    """Number of a target -> the terms of the streams whose first row predicts it, with the pairs
    among them.

    `fused_losses` compares row i of all its streams with target i, which holds for streams that
    begin together."""
    first = dict.fromkeys(terms.streams, 0)
    for name in terms.suffix_streams:
        first[name] = num_targets - len(streams[name])
    parts = {}
    for start in sorted(set(first.values())):
        names = tuple(name for name in terms.streams if first[name] == start)
        pairs = tuple(pair for pair in terms.pairs if set(pair) <= set(names))
        parts[start] = Terms(names, pairs, terms.label_smoothing)
    return parts


class TrainingModule(nn.Module):
    """The model with its objective: batch and coefficients in, weighted total and the sum of every
    term out."""

    def __init__(self, model: JanusTransformer, loss: ObjectiveLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.captured_pass: CapturedPass | None = None
        """Runs training passes in its place."""

    def seed_dropout(self, seed: Seed) -> None:
        """Make dropout of the next forward pass a function of `seed`."""
        (self.captured_pass or self.model).seed_dropout(seed)

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """See `ObjectiveLoss`."""
        if self.captured_pass and self.training and torch.is_grad_enabled():
            return self.captured_pass(batch, coefficients)
        return self.compute(batch, coefficients)

    def compute(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The forward pass itself, kernel by kernel."""
        before_decode = OBJECTIVES[self.loss.objective.name].before_decode
        if before_decode is None:
            hidden, length_logits = self.model(batch.source, batch.slots)
        else:
            # The encoder's output serves both passes of the decoder.
            encoder_out = self.model.encode(batch.source)
            slots = before_decode(self.model, batch, encoder_out, self.loss.vocab)
            hidden = self.model.decode(slots, encoder_out, batch.source)
            length_logits = self.model.length_logits(encoder_out, batch.source)
        # The output projection is tied to the embedding.
        weight = self.model.output_weight()
        return self.loss(hidden, length_logits, weight, batch, coefficients)
