"""The step before the first: the largest micro-batch there can be, to find out at once whether it fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from janus_pt.config.schema import Config
from janus_pt.data.corpus import BOUNDARIES, Corpus
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch
from janus_pt.train.step import run_step
from janus_pt.utils.errors import UserError

NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU."""


def dry_step(config: Config, engine: Any, corpora: list[Corpus]) -> None:
    """Forward, backward and update on random tokens, with a loss whose weights are all zero; all ranks take part.

    Memory is taken as in any step, optimizer state included, and no number changes: gradients and learning rate are
    zero, and the counts of steps are set back.

    Raises:
        UserError: the device has not enough memory.
    """
    batch = largest_batch(config, corpora)
    count = engine.gradient_accumulation_steps()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    try:
        run_step(
            engine,
            [batch] * count,
            torch.zeros(len(engine.module.loss.names), device=engine.device),
            [(0,)] * count,
        )
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        rank, size = dist.get_rank(), f"{config.data.micro_batch_size} {config.data.batch_unit}"
        raise UserError(
            f"rank {rank}: the largest micro-batch of {size} does not fit into memory: lower data.micro_batch_size, "
            "set parallel.activation_checkpointing, or share the model among more ranks",
            local=True,
        ) from None
    set_steps(engine, 0)


def set_steps(engine: Any, step: int) -> None:
    """Make `step` the number of steps that engine and optimizer have done."""
    engine.global_steps, engine.micro_steps, engine.global_samples = (
        step,
        step * engine.gradient_accumulation_steps(),
        0,
    )
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in optimizer.state.values():
        state["step"].fill_(step)


def largest_batch(config: Config, corpora: list[Corpus]) -> Batch:
    """A micro-batch of the longest samples that the corpora may have."""
    data, model = config.data, config.model
    longest = min(max(corpus.longest for corpus in corpora), model.max_positions)
    count = (
        data.micro_batch_size // longest if data.batch_unit == "tokens" else data.micro_batch_size
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.common_vocab_size, longest - BOUNDARIES)
    fields: dict[str, Any] = {name: tokens for name in corpora[0].manifest.fields}
    examples = [
        make_example(fields, rng, model=model, objective=config.objective)
        for _ in range(max(1, count))
    ]
    return collate_examples(examples, config.objective)
