"""A step before the first one, with the largest micro-batch, to find out at once whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from janus_pt.config.schema import DataConfig, ModelConfig, ObjectiveConfig
from janus_pt.data.corpus import Corpus
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch
from janus_pt.packing.example import BOUNDARY_TOKENS
from janus_pt.parallel.engine import Engine, set_steps
from janus_pt.train.report.phases import Phases
from janus_pt.train.step import run_step
from janus_pt.utils.errors import UserError

NO_MEMORY = "can't allocate memory"
"""Part of torch's message on a CPU, where the error has no type of its own."""


def dry_step(
    engine: Engine, data: DataConfig, corpora: Sequence[Corpus], for_graphs: bool = False
) -> None:
    """Forward, backward and update on random tokens, without effect; all ranks take part.

    Memory is taken as in any step, optimizer state included.

    Args:
        for_graphs: the batch is one for CUDA graphs (`run.cuda_graphs`).

    Raises:
        UserError: the device has not enough memory.
    """
    loss = engine.module.loss
    batch = largest_batch(data, engine.module.model.config, loss.objective, corpora, for_graphs)
    count = engine.gradient_accumulation_steps()
    # Graphs are recorded when their size comes a second time.
    repetitions = 2 if for_graphs else 1
    # All coefficients are zero, so the gradients are; at a rate of zero nothing decays either.
    coefficients = torch.zeros(len(loss.names), device=engine.device)
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    try:
        for _ in range(repetitions):
            run_step(engine, [batch] * count, coefficients, [(0,)] * count, Phases(engine.device))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        raise UserError(
            f"rank {dist.get_rank()}: the largest micro-batch of {data.micro_batch_size} "
            f"{data.batch_unit} does not fit into memory: lower data.micro_batch_size, set "
            'parallel.activation_checkpointing to "all", or share the model among more ranks',
            local=True,
        ) from None
    # AdamW corrects the bias of its moments by its number of steps, which must start at 0.
    set_steps(engine, 0)


def _lacks_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in str(error)


def longest_sample(corpora: Sequence[Corpus], model: ModelConfig) -> int:
    """The most tokens that a sample may have, bos and eos counted."""
    return min(max(corpus.longest for corpus in corpora), model.longest_sample)


def largest_batch(
    data: DataConfig,
    model: ModelConfig,
    objective: ObjectiveConfig,
    corpora: Sequence[Corpus],
    for_graphs: bool = False,
) -> Batch:
    """A micro-batch of the longest samples that the corpora may have."""
    longest = longest_sample(corpora, model)
    size = data.micro_batch_size
    count = size // longest if data.batch_unit == "tokens" else size
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.common_vocab_size, longest - BOUNDARY_TOKENS)
    sample: dict[str, np.ndarray[Any, Any]] = {name: tokens for name in corpora[0].manifest.fields}
    examples = [
        make_example(sample, rng, model=model, objective=objective) for _ in range(max(1, count))
    ]
    blocks_for = model if for_graphs else None
    return collate_examples(examples, objective, blocks_for, for_graphs)
