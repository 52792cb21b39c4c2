"""Pipeline parallelism: one stage of the model as DeepSpeed's `PipelineModule` wants it.

To DeepSpeed every stage is one layer. What stages hand on is one tensor, the encoder's hidden states and behind them
(from the slot embedding on) the decoder's. The batches themselves are known to all stages: each reads the data.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from torch import Tensor, nn

from janus_pt.config.schema import Config
from janus_pt.model.dropout import Seed
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.loss import Labels, ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.packing.slots import POSITION, TOKEN
from janus_pt.parallel import groups
from janus_pt.parallel.materialize import build_model
from janus_pt.parallel.parameters import table_layers
from janus_pt.parallel.stages import pipeline_layers
from janus_pt.parallel.tensor import vocab_shard

Carry = tuple[Tensor, ...]


class Stage(nn.Module):
    """The layers of one stage: from what the stage before hands on to what the next one gets."""

    def __init__(self, model: JanusTransformer, layers: range) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.seeds: Iterator[Seed] = iter(())
        self.batches: Iterator[Batch] = iter(())
        """The micro-batches on the device, in the order of the forward passes."""

    def forward(self, carry: Tensor) -> Tensor | Carry:
        """`carry` is the hidden states, of the first stage anything; so is the result, but the last stage's, which is
        the decoder's hidden states, the scores of the lengths, and the table."""
        batch = next(self.batches)
        source, slots = batch.source, batch.slots
        model, config = self.model, self.model.config
        turn, head = config.encoder_layers + 1, config.encoder_layers + config.decoder_layers + 2
        if self.training:
            model.seed_dropout(next(self.seeds))
        if 0 in self.layers:
            encoded = model.encoder.embed(model.embed_sources(source.tokens), source.positions)
            decoded = encoded[:, :0]
        else:
            encoded, decoded = carry.tensor_split([source.tokens.shape[1]], dim=1)
        if self.layers[0] < turn:
            encoded = model.encoder.run(encoded, model.encoder_masks(source, encoded.dtype))
        if turn in self.layers:
            encoded = model.encoder.layer_norm(encoded)
            decoded = model.decoder.embed(model.embed_tokens(slots[TOKEN]), slots[POSITION])
        if self.layers[-1] > turn:
            masks = model.decoder_masks(slots, source, encoded.dtype)
            decoded = model.decoder.run(decoded, encoded, masks)
        if head in self.layers:
            # As an output, and not read by the loss itself: with bfloat16 DeepSpeed zeroes all gradients when the
            # backward pass comes to the first output, and the table's would be there already.
            table = model.embed_tokens.get_parameter("weight")
            return (
                model.decoder.layer_norm(decoded),
                model.length_logits(encoded, source),
                table.view_as(table),
            )
        return torch.cat((encoded, decoded), dim=1)


class Pipeline(PipelineModule):
    """This rank's stage with the objective's loss, for `deepspeed.initialize`.

    The embedding is held by up to three stages (two, if the source has one of its own). DeepSpeed's own tied layers are
    lost when a checkpoint is loaded (they are stored as functions), so the tie is made here, by naming the ranks that
    share it.
    """

    def __init__(self, config: Config) -> None:
        shape, stages = config.model, config.parallel.pipeline_parallel_size
        parts = pipeline_layers(shape, stages)
        users = table_layers(shape)
        self.tied_stages = sorted(
            {next(s for s, layers in enumerate(parts) if user in layers) for user in users}
        )
        topology = groups.topology()
        mine = topology.get_coord(dist.get_rank()).pipe
        model = build_model(shape, config.run.seed, parts[mine])
        model.recompute_activations(config.parallel.activation_checkpointing)
        layers: list[Any] = [None] * stages
        layers[mine] = Stage(model, parts[mine])
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its layers
            super().__init__(
                layers,
                topology=topology,
                loss_fn=self._loss,
                partition_method="uniform",
                dynamic_shape=True,
            )
        self.loss = ObjectiveLoss(
            config.objective, vocab_shard(model.embed_tokens, shape.vocab_size)
        )
        self.sums = torch.zeros(0)
        self.coefficients = torch.zeros(0)

    @property
    def stage(self) -> Stage:
        """This rank's stage."""
        return self.forward_funcs[0]

    @property
    def model(self) -> JanusTransformer:
        """This stage's part of the model."""
        return self.stage.model

    def _loss(self, outputs: Carry, labels: Carry) -> Tensor:
        targets, lengths, *predict = labels
        named = dict(zip(self.loss.terms.streams, predict, strict=True))
        hidden, length_logits, weight = outputs
        total, sums = self.loss(
            hidden, length_logits, weight, Labels(targets, named, lengths), self.coefficients
        )
        self.sums = self.sums + sums
        return total

    def _index_tied_modules(self) -> dict[str, Any]:
        """The group of ranks that share each table; all ranks make all groups, in the same order."""
        found: dict[str, Any] = {}
        axes = self._topo.get_dim("data"), self._topo.get_dim("model")
        for data, model in ((d, m) for d in range(axes[0]) for m in range(axes[1])):
            ranks = [
                self._topo.get_rank(pipe=stage, data=data, model=model)
                for stage in self.tied_stages
            ]
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                table = self.model.embed_tokens
                found["embed_tokens"] = {
                    "ranks": ranks,
                    "group": group,
                    "weight_attr": ["weight"],
                    "module": table,
                }
                weight: Any = table.get_parameter("weight")
                weight.ds_pipe_replicated = dist.get_rank() != ranks[0]  # counted once in norms
        return found

    def get_tied_weights_and_groups(self) -> list[tuple[Tensor, Any]]:
        """The shared tables of this rank, for the sum of their gradients."""
        return [(tie["module"].weight, tie["group"]) for tie in self.tied_comms.values()]


def train_batches(
    engine: Any, batches: Sequence[Batch], coefficients: Tensor, seeds: Iterable[Seed]
) -> Tensor:
    """Forward and backward of a step's micro-batches through all stages, and the update.

    Returns the sums of the terms, zeros but on the last stage. All ranks take part.
    """
    module = engine.module
    parts = _begin(engine, batches, coefficients)
    module.stage.seeds = iter(seeds)
    engine.train_batch(parts)
    return module.sums


def evaluate_batches(engine: Any, batches: Sequence[Batch], coefficients: Tensor) -> Tensor:
    """The sums of the terms with dropout off; zeros but on the last stage. All ranks take part, each pipeline with
    its own number of batches."""
    module = engine.module
    parts = _begin(engine, batches, coefficients)
    if not batches:
        dist.barrier()  # as `eval_batch` does
        return module.sums
    engine.eval_batch(parts, reduce_output=None, bcast_loss=False, num_micro_batches=len(batches))
    module.train()
    return module.sums


def _begin(
    engine: Any, batches: Sequence[Batch], coefficients: Tensor
) -> Iterator[tuple[Tensor, Carry]]:
    """Make the batches known to the stage; what the first stage reads, and what the last one compares with."""
    module: Pipeline = engine.module
    module.stage.batches = (batch.to(engine.device) for batch in batches)
    module.coefficients, module.sums = coefficients, torch.zeros_like(coefficients)
    return ((b.source.tokens, (b.targets, b.lengths, *b.predict.values())) for b in batches)
