"""Validation by decoding: a split of a task, shared among the data-parallel ranks, is decoded with
the engine's weights and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from janus_pt.config.run_schema import ValidationConfig
from janus_pt.config.schema import DataConfig
from janus_pt.data.corpus import tokenizer_files
from janus_pt.inference.janus_model import JanusModel
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.decode_mode import ready_to_decode
from janus_pt.parallel.job_store import from_first_rank
from janus_pt.tasks.evaluate import fitting, score_texts, text_of
from janus_pt.tasks.reading import TaskSplit, read_split
from janus_pt.tasks.table import Task, find_task
from janus_pt.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Decoding:
    """The section `validation`, opened: examples, their sources as the model reads them, options."""

    task: Task
    examples: TaskSplit
    sources: list[str]
    tokenizers: list[Tokenizer]
    mode: str
    options: dict[str, Any]

    def scores(self, model: JanusTransformer) -> dict[str, float]:
        """The task's metrics for a model in training, which afterwards trains on.

        All ranks take part.
        """
        # Tensor-parallel ranks decode the same sources together.
        rank = parallel_state.get_data_parallel_rank()
        ranks = parallel_state.get_data_parallel_world_size()
        with ready_to_decode(model):
            janus = JanusModel(model, *self.tokenizers)
            generations = janus.generate(self.sources[rank::ranks], mode=self.mode, **self.options)
        texts = [text_of(generation) for generation in generations]
        texts_by_rank: list[list[str]] = [[]] * ranks
        group = parallel_state.get_data_parallel_group()
        dist.all_gather_object(texts_by_rank, texts, group=group)
        # One rank scores and the others get its numbers: the run's decisions depend on them, and
        # must be the same everywhere.
        scores: dict[str, float] = {}
        if dist.get_rank() == 0:
            in_order = _interleaved(texts_by_rank, len(self.sources))
            scores = score_texts(self.task, in_order, self.examples).values
        return from_first_rank(scores)


def _interleaved(texts_by_rank: Sequence[Sequence[str]], count: int) -> list[str]:
    """The texts in the order of the examples, of which rank r of R has every R-th from r on."""
    ranks = len(texts_by_rank)
    return [texts_by_rank[index % ranks][index // ranks] for index in range(count)]


def open_decoding(
    validation: ValidationConfig | None, data: DataConfig, longest_text: int
) -> Decoding | None:
    """The examples of `validation`; None without that section.

    Raises:
        UserError: the task's data cannot be read.
    """
    if validation is None:
        return None
    task = find_task(validation.task)
    tokenizers = [load_tokenizer(path) for path in tokenizer_files(data)]
    split = read_split(task, validation.data, validation.split)
    count = validation.sentences
    examples = TaskSplit(split.sources[:count], split.targets[:count])
    # The source's tokenizer is the last one, also where it is the only one.
    sources, max_length = fitting(task, examples, tokenizers[-1], longest_text)
    options = {
        "max_length": max_length,
        **task.decoding.get(validation.mode, {}),
        **validation.options,
    }
    return Decoding(task, examples, sources, tokenizers, validation.mode, options)
