"""Validation by decoding: a task's split, shared out over the data-parallel ranks, with the weights of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from janus_pt.config.schema import Config, ValidationConfig
from janus_pt.data.corpus import tokenizer_files
from janus_pt.inference.janus_model import JanusModel
from janus_pt.inference.sharded import ready_to_decode
from janus_pt.model.transformer import JanusTransformer
from janus_pt.tasks.evaluate import fitting, score_texts, text_of
from janus_pt.tasks.reading import TaskSplit, read_split
from janus_pt.tasks.table import Task, find_task
from janus_pt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Decoding:
    """What `validation` asks for: examples, their sources as the model reads them, options of the mode."""

    task: Task
    examples: TaskSplit
    sources: list[str]
    tokenizers: list[Tokenizer]
    mode: str
    options: dict[str, Any]

    def scores(self, model: JanusTransformer) -> dict[str, float]:
        """The task's metrics for a model in training, which is as it was afterwards; all ranks take part."""
        rank, ranks = (
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        with ready_to_decode(model):
            janus = JanusModel(model, *self.tokenizers)
            found = janus.generate(self.sources[rank::ranks], mode=self.mode, **self.options)
        parts: list[list[str]] = [[]] * ranks
        group = parallel_state.get_data_parallel_group()
        dist.all_gather_object(parts, [text_of(generation) for generation in found], group=group)
        told: list[dict[str, float]] = [{}]
        if dist.get_rank() == 0:
            texts = [parts[i % ranks][i // ranks] for i in range(len(self.sources))]
            told = [score_texts(self.task, texts, self.examples).values]
        dist.broadcast_object_list(told, src=0)
        return told[0]


def open_decoding(config: Config) -> Decoding | None:
    """The examples of `validation`, if there is one.

    Raises:
        UserError: the task's data cannot be read.
    """
    wanted: ValidationConfig | None = config.validation
    if wanted is None:
        return None
    task, tokenizers = (
        find_task(wanted.task),
        [Tokenizer.load(path) for path in tokenizer_files(config.data)],
    )
    examples = read_split(task, wanted.data, wanted.split)
    examples = TaskSplit(examples.sources[: wanted.sentences], examples.targets[: wanted.sentences])
    sources, max_length = fitting(task, examples, tokenizers[-1], config.model.max_positions)
    options = {"max_length": max_length, **task.decoding.get(wanted.mode, {}), **wanted.options}
    return Decoding(task, examples, sources, tokenizers, wanted.mode, options)
