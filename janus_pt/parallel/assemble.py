"""The steps that make a model ready for training, in order:

meta → stage → memory → weights → freeze → recompute → loss → comparison → engine
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.config.schema import AdapterConfig, Config, ModelConfig
from janus_pt.model.initialize import initialize_weights, load_weights
from janus_pt.model.meta import build_on_meta
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.parallel import groups
from janus_pt.parallel.captured_pass import can_capture
from janus_pt.parallel.consistency import check_identical, parameter_fingerprints
from janus_pt.parallel.deepspeed_config import derived_deepspeed_config
from janus_pt.parallel.engine import Engine, build_engine
from janus_pt.parallel.materialize import CPU, drop_other_stages, materialize
from janus_pt.parallel.parameter_groups import build_optimizer, is_trained
from janus_pt.parallel.pipeline import (
    Pipeline,
    announce_no_shapes,
    is_pipeline,
    share_no_losses,
)
from janus_pt.parallel.sequence import sum_gradients_over_rows
from janus_pt.parallel.stages import pipeline_layers
from janus_pt.parallel.tensor import local_shard, tensor_parallel_layers, vocab_shard
from janus_pt.utils.errors import UserError


def assemble(config: Config, weights: Mapping[str, Tensor] | None = None) -> Engine:
    """This rank's part of the model, with its loss, in DeepSpeed's engine; all ranks take part.

    Args:
        weights: the unsharded weights to start from, by name; by default they follow from `run.seed`.

    Raises:
        UserError: ranks that hold the same parameter hold different values; or the configuration asks
            for what the device cannot do.
    """
    if config.run.cuda_graphs:
        _check_graphs(groups.device())
    parallel = config.parallel
    stages = pipeline_layers(config.model, parallel.pipeline_parallel_size)
    layers = stages[parallel_state.get_pipeline_model_parallel_rank()]
    model = build_model(
        config.model,
        config.run.seed,
        layers,
        config.adapter,
        weights,
        sequence_parallel=parallel.sequence_parallel,
        device=groups.device(),
        dtype=getattr(torch, config.precision.dtype),
    )

    # Freeze before the optimizer is built: it takes the parameters that require a gradient.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, config.optimizer, config.adapter))

    model.recompute_activations(parallel.activation_checkpointing)

    # The loss reads this rank's rows of the token table. They are known once the model is sharded.
    vocab = vocab_shard(model.embed_tokens, config.model.vocab_size)
    loss = ObjectiveLoss(config.objective, vocab)
    in_stages = parallel.pipeline_parallel_size > 1
    module = Pipeline(model, stages, loss) if in_stages else TrainingModule(model, loss)

    # Compare before the engine takes over: it broadcasts the first data-parallel rank's weights,
    # which would hide a difference, and ZeRO-3 leaves no rank a whole parameter.
    check_identical(*parameter_fingerprints(model))

    # Last, because DeepSpeed moves the parameters to the device, casts them, and with ZeRO replaces
    # their memory: nothing may change them from outside afterwards.
    settings = derived_deepspeed_config(
        config.data,
        config.optimizer,
        parallel,
        config.precision,
        config.deepspeed,
        parallel_state.get_data_parallel_world_size(),
    )
    engine = build_engine(
        module, build_optimizer(config.optimizer, model), settings, config.run.cuda_graphs
    )
    if is_pipeline(engine):
        announce_no_shapes(engine)
        share_no_losses(engine)
    return engine


def _check_graphs(device: torch.device) -> None:
    """Raise `UserError` if passes on this device, with this torch, cannot be recorded."""
    if device.type == "cpu":
        raise UserError("run.cuda_graphs: this run is on a CPU: set it to false")
    if not can_capture():
        raise UserError(
            f"run.cuda_graphs: torch {torch.__version__} cannot record a backward pass whose parameters "
            "have hooks: install a later one (2.13 can), or set it to false"
        )


def build_model(
    config: ModelConfig,
    seed: int,
    layers: range | None = None,
    adapter: AdapterConfig | None = None,
    weights: Mapping[str, Tensor] | None = None,
    sequence_parallel: bool = False,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> JanusTransformer:
    """This rank's part of the model.

    Args:
        layers: this rank's layers of the chain (`stages.py`); default: all.
        weights: unsharded weights by name. Adapters that are not among them start new.
        sequence_parallel: tensor-parallel ranks share rows between sharded layers.
        device, dtype: of the parameters. DeepSpeed would move and cast them, but then the host, whose
            memory all ranks of a node share, would hold every rank's part in float32 first.
    """
    # On the meta device the whole model costs no memory. The factory makes each layer in the size
    # of this tensor-parallel rank's shard.
    model = build_on_meta(config, adapter, tensor_parallel_layers(sequence_parallel))

    # Other stages' layers go before memory is given, so that no rank ever holds the whole model.
    if layers is not None:
        drop_other_stages(model, layers)

    # Memory before weights: tensors on the meta device have none to write to.
    materialize(model, device, dtype)

    # Each weight is a function of the seed and its name, so it is the same on every layout. It is
    # drawn on the CPU, whole, and given up when this rank's part of it was copied.
    initialize_weights(model, seed, local_shard)

    # Given weights come second: new adapters are in the model, but not in the weights.
    if weights is not None:
        load_weights(model, weights, local_shard)

    # After memory was given, which makes new parameters.
    if sequence_parallel:
        sum_gradients_over_rows(model)
    return model
