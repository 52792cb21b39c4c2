"""Values folded into one block of memory, and batches on their way between processes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.benchmark.case import make_batch, shape_case
from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch
from janus_pt.packing.buffer import as_buffer, map_leaves, pack_tensors, unpack_tensors
from tests.support.models import tiny_model

DTYPES = (torch.int32, torch.int64, torch.float64, torch.bool, torch.bfloat16)


@dataclass(frozen=True)
class Pair:
    first: Any
    second: Any


def tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_leaves(value, torch.Tensor, found.append)
    return found


def assert_same(value: Any, other: Any) -> None:
    here, there = tensors(value), tensors(other)
    assert len(here) == len(there)
    for mine, yours in zip(here, there, strict=True):
        assert mine.dtype == yours.dtype and mine.shape == yours.shape and torch.equal(mine, yours)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_folded_unfolds_and_stays_in_its_block(
    parts: list[tuple[torch.dtype, list[int]]],
) -> None:
    made = [torch.randint(0, 2, shape).to(dtype) for dtype, shape in parts]
    value = {"one": Pair(made[0].t() if made[0].ndim == 2 else made[0], 7), "others": [*made[1:]]}
    block, layout = as_buffer(value)
    whole = unpack_tensors(block, layout)
    assert_same(value, whole)
    assert_same(value, pack_tensors(value))
    assert whole["one"].second == 7
    again, same_layout = as_buffer(whole)
    assert again.data_ptr() == block.data_ptr()
    assert_same(value, unpack_tensors(again, same_layout))


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_batches_of_all_objectives_go_from_process_to_process(
    name: str, data: st.DataObject
) -> None:
    """With streams of no slots or one, too, whose arrays numpy gives strides that say nothing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    config = ObjectiveConfig.model_validate({"name": name, "recipe": "translation"})
    sizes = data.draw(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=3)
    )
    pairs = [{"source": rng.integers(5, 24, n), "target": rng.integers(5, 24, m)} for n, m in sizes]
    shape = tiny_model().config
    examples = [make_example(pair, rng, model=shape, objective=config) for pair in pairs]
    batch = collate_examples(examples, config)
    assert_same(batch, pickle.loads(ForkingPickler.dumps(batch)))


def test_a_batch_is_handed_over_as_one_tensor() -> None:
    batch = make_batch(shape_case("small", "query"))
    text = pickle.dumps(batch)
    assert text.count(b"_rebuild_tensor") == 1
    other: Batch = pickle.loads(text)
    assert_same(batch, other)
    assert (other.slots.num_content, list(other.predict)) == (
        batch.slots.num_content,
        list(batch.predict),
    )
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors(other)}) == 1
    assert_same(batch, other.to(torch.device("cpu")))
    assert_same(batch, other._moved(torch.clone))
