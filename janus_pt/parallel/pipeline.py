"""Pipeline parallelism: one stage of the model as DeepSpeed's `PipelineModule` wants it.

To DeepSpeed every stage is one layer. Stages hand on one tensor: the encoder's hidden states and,
from the slot embedding on, the decoder's behind them. The batches themselves are not handed on: each
stage reads the data.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeGuard

import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor, nn

from janus_pt.model.dropout import Seed
from janus_pt.model.layer_numbers import (
    SOURCE_EMBEDDING,
    head_layer,
    slot_embedding,
    table_layers,
)
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.loss import ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.packing.slots import POSITION, TOKEN
from janus_pt.parallel import groups
from janus_pt.parallel.engine import Engine

LastOutputs = tuple[Tensor, Tensor, Tensor]
"""The decoder's hidden states, the scores of the lengths, and this rank's rows of the token table."""
MicroBatch = tuple[Tensor, tuple[()]]
"""What DeepSpeed's data iterator yields: the first stage's input, and labels, of which we have none."""


class Stage(nn.Module):
    """The layers of one stage: from the previous stage's output to the next stage's input."""

    def __init__(self, model: JanusTransformer, layers: range) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.seeds: Iterator[Seed] = iter(())
        self.batches: Iterator[Batch] = iter(())
        """The micro-batches on the device, in the order of the forward passes."""
        self.carry_shapes: Iterator[list[int]] = iter(())
        """Shapes of the previous stage's hidden states, in the same order."""
        self.batch: Batch
        """The micro-batch of the last forward pass."""

    def carry_shape(self, batch: Batch) -> list[int]:
        """The shape `[1, source (+ slots), hidden]` of the hidden states that `forward` takes."""
        config = self.model.config
        width = batch.source.tokens.shape[1]
        if self.layers[0] > slot_embedding(config):
            width += batch.slots.table.shape[1]
        return [1, width // self.model.rows.share.ranks, config.hidden_size]

    def forward(self, carry: Tensor) -> Tensor | LastOutputs:
        """Hidden states `[1, source + slots, hidden]`, or the last stage's `LastOutputs`.

        Args:
            carry: the previous stage's hidden states; the first stage ignores it.
        """
        self.batch = next(self.batches)
        source, slots = self.batch.source, self.batch.slots
        model = self.model
        decoder_starts = slot_embedding(model.config)
        if self.training:
            model.seed_dropout(next(self.seeds))
        if SOURCE_EMBEDDING in self.layers:
            encoded = model.encoder.embed(model.embed_sources(source.tokens), source.positions)
            decoded = encoded[:, :0]
        else:
            # Where tensor-parallel ranks share rows, both are this rank's.
            width = source.tokens.shape[1] // model.rows.share.ranks
            encoded, decoded = carry.tensor_split([width], dim=1)
        # A stage that begins behind the encoder hands the encoder's output on as it is.
        if self.layers[0] < decoder_starts:
            masks = model.encoder_masks(source, encoded.dtype)
            encoded = model.encoder.run(encoded, masks)
        if decoder_starts in self.layers:
            encoded = model.encoder.layer_norm(encoded)
            decoded = model.decoder.embed(model.embed_tokens(slots[TOKEN]), slots[POSITION])
        if self.layers[-1] > decoder_starts:
            decoder_masks = model.decoder_masks(slots, source, encoded.dtype)
            decoded = model.decoder.run(decoded, encoded, decoder_masks)
        if head_layer(model.config) in self.layers:
            hidden = model.decoder.output(decoded)
            # The table is an output; the loss does not read it from the model. With bfloat16
            # DeepSpeed zeroes all gradients when the backward pass comes to the first output. The
            # table's gradient would be there already, and would be lost.
            table = model.output_weight()
            return hidden, model.length_logits(encoded, source), table.view_as(table)
        return torch.cat((encoded, decoded), dim=1)


class Pipeline(PipelineModule):
    """This rank's stage with the objective's loss, for `deepspeed.initialize`.

    Up to three stages hold the token table (two, if the source has its own). DeepSpeed's own tied
    layers are lost when a checkpoint is loaded, since they are stored as functions, without a state.
    So the tie is made here, by naming the ranks that share the table.
    """

    def __init__(
        self, model: JanusTransformer, stages: Sequence[range], loss: ObjectiveLoss
    ) -> None:
        """Take this rank's part of the model; all ranks take part.

        Args:
            stages: every stage's layers of the chain (`stages.py`).
        """
        self.tied_stages = sorted(
            {_stage_of(layer, stages) for layer in table_layers(model.config)}
        )
        topology = groups.topology()
        stage = topology.get_coord(dist.get_rank()).pipe
        # DeepSpeed builds this rank's entry alone, so the others may be empty. Entries are numbered
        # by stage, which is where the number in a parameter's name comes from.
        layers: list[Stage | None] = [None] * len(stages)
        layers[stage] = Stage(model, stages[stage])
        # It prints its seed and its layers.
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(
                layers,
                topology=topology,
                loss_fn=self._loss,
                # One entry for each stage: "uniform" gives every stage its own.
                partition_method="uniform",
                # Micro-batches differ in length, so DeepSpeed makes buffers for each.
                dynamic_shape=True,
            )
        self.loss = loss
        self.sums = torch.zeros(0)
        """Sums of the loss terms over the micro-batches since `_begin`, on the last stage."""
        self.coefficients = torch.zeros(0)

    @property
    def stage(self) -> Stage:
        """This rank's stage."""
        return self.forward_funcs[0]

    @property
    def model(self) -> JanusTransformer:
        """This stage's part of the model."""
        return self.stage.model

    def _loss(self, outputs: LastOutputs, labels: object) -> Tensor:
        # DeepSpeed calls this directly after the forward pass of the same micro-batch, so the
        # stage's batch is the right one.
        hidden, length_logits, table = outputs
        total, sums = self.loss(hidden, length_logits, table, self.stage.batch, self.coefficients)
        self.sums = self.sums + sums
        return total

    def _index_tied_modules(self) -> dict[str, Any]:
        """The group of ranks that share the token table, in the form of DeepSpeed's own ties."""
        ties: dict[str, Any] = {}
        data_ranks, tensor_ranks = self._topo.get_dim("data"), self._topo.get_dim("model")
        for data in range(data_ranks):
            for tensor in range(tensor_ranks):
                ranks = [
                    self._topo.get_rank(pipe=stage, data=data, model=tensor)
                    for stage in self.tied_stages
                ]
                # All ranks make all groups, in the same order, also those they are not in:
                # `new_group` is a collective of the whole job.
                group = dist.new_group(ranks)
                if dist.get_rank() in ranks:
                    ties["embed_tokens"] = self._tie(ranks, group)
        return ties

    def _tie(self, ranks: list[int], group: dist.ProcessGroup) -> dict[str, Any]:
        table = self.model.embed_tokens
        weight: Any = table.get_parameter("weight")
        # Gradient norms count the shared table once, on the first stage that holds it.
        weight.ds_pipe_replicated = dist.get_rank() != ranks[0]
        return {"ranks": ranks, "group": group, "weight_attr": ["weight"], "module": table}

    def get_tied_weights_and_groups(self) -> list[tuple[Tensor, Any]]:
        """The table of this rank and its group, over which DeepSpeed adds up its gradients."""
        # DeepSpeed's own version looks in its tied modules, which we do not use.
        return [(tie["module"].weight, tie["group"]) for tie in self.tied_comms.values()]


def _stage_of(layer: int, stages: Sequence[range]) -> int:
    return next(stage for stage, layers in enumerate(stages) if layer in layers)


class StageEngine(Engine, Protocol):
    """The members of `deepspeed.runtime.pipe.engine.PipelineEngine` that this package uses."""

    module: Pipeline
    device: torch.device
    _send_tensor_meta: Callable[[Tensor, int], None]
    """Announces the shape of a tensor to another stage."""
    _recv_tensor_meta: Callable[[int], Tensor]
    """The buffer for a tensor whose shape another stage has announced."""
    _aggregate_total_loss: Callable[[], Tensor]
    """The step's mean loss, behind its update; all ranks take part."""

    def _allocate_or_extend_buffers(self, idx: int, shape: list[int], dtype: torch.dtype) -> Tensor:
        """A buffer of this shape, in memory kept under the number `idx`."""

    def train_batch(self, data_iter: Iterator[MicroBatch]) -> Tensor:
        """Forward and backward of a step's micro-batches through all stages, and the update."""

    def eval_batch(
        self,
        data_iter: Iterator[MicroBatch],
        reduce_output: str | None,
        bcast_loss: bool,
        num_micro_batches: int,
    ) -> Tensor:
        """Forward passes through all stages."""


def is_pipeline(engine: Engine) -> TypeGuard[StageEngine]:
    """Whether the engine drives one stage of a pipeline."""
    return isinstance(engine, PipelineEngine)


def announce_no_shapes(engine: StageEngine) -> None:
    """Keep the stages from sending each other shapes, which the host would wait for.

    DeepSpeed sends a message with the shape before each tensor, and the receiver reads it on the
    host: it stops until the stage before has come that far. Each stage reads the batches itself, and
    so knows the shapes.
    """
    stage = engine.module.stage
    dtype = torch.bfloat16 if engine.bfloat16_enabled() else torch.float32

    def buffer(sender: int) -> Tensor:
        shape = next(stage.carry_shapes)
        return engine._allocate_or_extend_buffers(0, shape, dtype)

    engine._send_tensor_meta = lambda tensor, receiver: None
    engine._recv_tensor_meta = buffer


def share_no_losses(engine: StageEngine) -> None:
    """Keep DeepSpeed from averaging the step's loss over ranks and telling all stages.

    Nobody reads it: sums of the terms are collected where they are reported. And the receiving
    stages copy a list of zeros to the device, for which the host waits.
    """
    engine._aggregate_total_loss = lambda: engine.module.sums


def train_batches(
    engine: StageEngine, batches: Sequence[Batch], coefficients: Tensor, seeds: Iterable[Seed]
) -> Tensor:
    """Forward and backward of a step's micro-batches through all stages, and the update.

    Returns the sums of the terms, which are zeros on all but the last stage. All ranks take part.
    """
    module = engine.module
    micro_batches = _begin(engine, batches, coefficients)
    module.stage.seeds = iter(seeds)
    engine.train_batch(micro_batches)
    return module.sums


def evaluate_batches(engine: StageEngine, batches: Sequence[Batch], coefficients: Tensor) -> Tensor:
    """The sums of the terms without dropout; zeros on all but the last stage.

    All ranks take part, each pipeline with its own number of batches, which may be 0.
    """
    module = engine.module
    micro_batches = _begin(engine, batches, coefficients)
    if not batches:
        # `eval_batch` fails on an empty schedule. It begins with a barrier of all ranks, in which
        # pipelines that have batches wait for this one.
        dist.barrier()
        return module.sums
    # Pipelines have different numbers of batches, so nothing may be reduced over them.
    engine.eval_batch(
        micro_batches, reduce_output=None, bcast_loss=False, num_micro_batches=len(batches)
    )
    module.train()
    return module.sums


def _begin(
    engine: StageEngine, batches: Sequence[Batch], coefficients: Tensor
) -> Iterator[MicroBatch]:
    """Make the batches known to the stage, and give DeepSpeed an iterator over as many."""
    module = engine.module
    module.stage.carry_shapes = (module.stage.carry_shape(batch) for batch in batches)
    # Moved to the device one by one, as the forward passes come to them.
    module.stage.batches = (batch.to(engine.device) for batch in batches)
    module.coefficients = coefficients
    module.sums = torch.zeros_like(coefficients)
    # DeepSpeed insists on an input tensor for the first stage, and moves it to the device. The stage
    # reads its own batch.
    nothing = torch.empty(0, device=engine.device)
    return ((nothing, ()) for _ in batches)
