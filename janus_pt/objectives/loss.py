"""The objective's loss over hidden states, and the model with its loss as one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives import OBJECTIVES, cmlmc
from janus_pt.objectives.fused_loss import Terms, VocabShard, fused_losses
from janus_pt.packing.batch import CORRECTED, Batch, second_draw


@dataclass(frozen=True)
class Labels:
    """What the loss needs of a batch: see `Batch`."""

    targets: Tensor
    predict: Mapping[str, Tensor]
    lengths: Tensor


@dataclass(frozen=True)
class ObjectiveLoss:
    """From hidden states to the weighted total and the sum of every term; `vocab` is this rank's rows of the table."""

    objective: ObjectiveConfig
    vocab: VocabShard

    @property
    def terms(self) -> Terms:
        """The terms over slots; with R-Drop those of both draws, and the divergences between them."""
        terms: Terms = OBJECTIVES[self.objective.name].terms(self.objective)
        if self.objective.draws == 1:
            return terms
        streams, pairs = terms.streams, terms.pairs
        pairs += (
            *((second_draw(a), second_draw(b)) for a, b in pairs),
            *((stream, second_draw(stream)) for stream in streams),
        )
        return Terms((*streams, *map(second_draw, streams)), pairs, terms.label_smoothing)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, the length cross-entropy last."""
        return (*self.terms.names, "loss/length")

    @property
    def weights(self) -> list[float]:
        """Weights of the terms, in the order of `names`."""
        weights: list[float] = OBJECTIVES[self.objective.name].weights(self.objective)
        if self.objective.draws == 1:
            return weights
        *halves, length = (weight / 2 for weight in weights)  # the mean of the draws
        own = halves[: len(self.terms.streams) // 2]
        pairs = halves[len(own) :]
        return [
            *own,
            *own,
            *pairs,
            *pairs,
            *(self.objective.r_drop * weight for weight in own),
            2 * length,
        ]

    def __call__(
        self,
        hidden: Tensor,
        length_logits: Tensor,
        weight: Tensor,
        labels: Labels | Batch,
        coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The total `coefficients · sums` (differentiable), and the sums `[terms]`.

        hidden: `[1, slots, hidden]`; length_logits: `[samples, length_classes]`, of all draws; weight: this rank's
        rows of the embedding; coefficients: `[terms]`. All tensor-parallel ranks take part. The length's term is the
        mean of the draws.
        """
        slots = hidden.flatten(0, 1)
        streams = {name: slots.index_select(0, index) for name, index in labels.predict.items()}
        total, sums = self._over_slots(streams, weight, labels.targets, coefficients[:-1])
        draws = self.objective.draws
        classes = labels.lengths.clamp(max=length_logits.shape[1] - 1).repeat(draws)
        length = F.cross_entropy(length_logits.to(sums.dtype), classes, reduction="sum") / draws
        return total + coefficients[-1] * length, torch.cat((sums, length.detach()[None]))

    def _over_slots(
        self, streams: Mapping[str, Tensor], weight: Tensor, targets: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The terms over slots; those of `CORRECTED` belong to the last targets, so they are walked for themselves."""
        if CORRECTED not in streams:
            return fused_losses(streams, weight, targets, coefficients, self.terms, self.vocab)
        total, sums = torch.zeros_like(coefficients[0]), list[Tensor]()
        for part, (name, hidden) in zip(coefficients.split(1), streams.items(), strict=True):
            own = targets[len(targets) - len(hidden) :] if name == CORRECTED else targets
            terms = Terms((name,), (), self.objective.label_smoothing)
            found = fused_losses({name: hidden}, weight, own, part, terms, self.vocab)
            total, sums = total + found[0], [*sums, found[1]]
        return total, torch.cat(sums)


class TrainingModule(nn.Module):
    """The model with its objective: batch and coefficients in, weighted total and the sum of every term out."""

    def __init__(self, model: JanusTransformer, loss: ObjectiveLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """See `ObjectiveLoss`."""
        if self.loss.objective.name == "cmlmc":
            encoder_out = self.model.encode(batch.source)
            slots = cmlmc.correct(self.model, batch, encoder_out, self.loss.vocab)
            hidden = self.model.decode(slots, encoder_out, batch.source)
            length_logits = self.model.length_logits(encoder_out, batch.source)
        else:
            hidden, length_logits = self.model(batch.source, batch.slots)
        weight = self.model.embed_tokens.get_parameter("weight")
        return self.loss(hidden, length_logits, weight, batch, coefficients)
