"""Private parts of other libraries that we rely on: a test each, which says what to look at when one moves.

`docs/architecture.md` lists them, with the reason why each is used.
"""

from __future__ import annotations

import inspect
from importlib.metadata import requires, version

import deepspeed
import pytest
import torch
import torch.distributed as dist
import torch.fx.experimental._config as symbolic_shapes
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

import janus_pt.model.flex  # noqa: F401
from tests.support.ranks import free_port


def test_what_is_pinned_is_installed() -> None:
    requirements = [line.partition(";")[0].strip() for line in requires("janus_pt") or []]
    pinned = [requirement for requirement in requirements if "==" in requirement]
    assert sorted(pinned) == [
        f"datatrove=={version('datatrove')}",
        f"deepspeed=={version('deepspeed')}",
        f"megatron-core=={version('megatron-core')}",
    ]


def test_sizes_that_are_equal_once_are_not_taken_to_be_equal() -> None:
    """model/flex.py turns torch's duck shaping off: its shape environment asks this setting."""
    assert symbolic_shapes.use_duck_shape is False
    shapes = ShapeEnv()
    sources = [ConstantSource(name) for name in ("a", "b")]
    a, b = (shapes.create_symbol(7, source, dynamic_dim=DimDynamic.DUCK) for source in sources)
    assert a != b


@pytest.mark.parametrize("optimizer", [BF16_Optimizer, DeepSpeedZeroOptimizer])
def test_deepspeed_links_moments_lazily_and_once(optimizer: type) -> None:
    """checkpoint/universal.py resets the flag, so that moments are linked again."""
    source = inspect.getsource(optimizer._lazy_init_hp_params_optimizer_state)
    assert "if not self._hp_optimizer_states_linked" in source
    assert "self._hp_optimizer_states_linked = True" in source


def test_deepspeed_looks_for_an_overflow_where_the_optimizer_asks() -> None:
    """parallel/engine.py sets `check_grad_overflow`, so that float32 runs are looked at, too."""
    assert "or self.check_grad_overflow" in inspect.getsource(DeepSpeedZeroOptimizer.step)


def test_the_engine_keeps_the_gradient_norm_where_we_put_it() -> None:
    """parallel/engine.py sets `_global_grad_norm` with ZeRO-0 in float32."""
    assert "self._global_grad_norm" in inspect.getsource(DeepSpeedEngine.get_global_grad_norm)


def test_optimizers_take_their_norm_from_the_functions_we_replace() -> None:
    """parallel/host_waits.py moves the norm to the host where these hand it out."""
    assert "get_global_norm_of_tensors(" in inspect.getsource(BF16_Optimizer.step)
    zero_1_and_2 = inspect.getsource(DeepSpeedZeroOptimizer.step)
    assert "self.check_overflow(partition_gradients=" in zero_1_and_2
    assert "scaled_global_grad_norm = self.scaled_global_norm()" in zero_1_and_2
    zero_3 = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    assert "combine_grad_norm_groups(norm_groups)" in zero_3
    assert "norm_groups = self._get_norm_groups()" in zero_3


def test_stage_3_waits_through_the_stream_we_replace() -> None:
    """parallel/host_waits.py puts a stream there that does not make the host wait."""
    epilogue = DeepSpeedZeroOptimizer_Stage3.independent_gradient_partition_epilogue
    # DeepSpeed wraps it to mark it for a profiler, and keeps the method in a closure alone.
    method = inspect.getclosurevars(epilogue).nonlocals["func"]
    assert "self.reduce_and_partition_stream.synchronize()" in inspect.getsource(method)


def test_deepspeed_asks_its_table_before_it_compiles_an_operator() -> None:
    """parallel/groups.py marks operators in `__compatible_ops__` as not available."""
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_pipelines_find_their_ties_through_the_methods_we_override() -> None:
    """parallel/pipeline.py makes the ties between stages' embeddings itself."""
    assert "self._index_tied_modules()" in inspect.getsource(PipelineModule.__init__)
    assert "get_tied_weights_and_groups" in inspect.getsource(PipelineEngine)
    assert "ds_pipe_replicated" in inspect.getsource(deepspeed.runtime.utils)


def test_a_pipeline_averages_its_loss_where_we_keep_it_from_that() -> None:
    """parallel/pipeline.py: nobody reads that loss but messages and DeepSpeed's monitor, both off."""
    source = inspect.getsource(PipelineEngine)
    assert source.count("self._aggregate_total_loss()") == 1
    assert "self.agg_train_loss = self._aggregate_total_loss()" in source


def test_stages_announce_shapes_by_the_methods_we_replace() -> None:
    """parallel/pipeline.py: each stage knows the shapes from the batch."""
    sends = inspect.getsource(PipelineEngine._exec_send_activations)
    receives = inspect.getsource(PipelineEngine._exec_recv_activations)
    assert "self._send_tensor_meta(outputs, self.next_stage)" in sends
    assert "self.pipe_recv_buf = self._recv_tensor_meta(self.prev_stage)" in receives
    buffers = inspect.signature(PipelineEngine._allocate_or_extend_buffers)
    assert list(buffers.parameters) == ["self", "idx", "shape", "dtype"]


@pytest.mark.parametrize("layer", [ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding])
def test_megatron_still_stores_an_extra_state(layer: type) -> None:
    """parallel/tensor.py turns it off for linear layers; if it is gone, so can our class be."""
    stores = layer.__dict__.get("get_extra_state") or layer.__dict__.get("set_extra_state")
    assert bool(stores) == (layer is not VocabParallelEmbedding)


def test_the_default_store_is_reachable() -> None:
    """parallel/job_store.py and train/watch/heartbeat.py use the store that the ranks met in."""
    from torch.distributed.distributed_c10d import _get_default_store

    if dist.is_initialized():
        assert isinstance(_get_default_store(), dist.Store)
        return
    store = dist.TCPStore("127.0.0.1", free_port(), 1, True)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        _get_default_store().set("heartbeat", "7")
        assert isinstance(_get_default_store(), dist.Store)
        assert _get_default_store().get("heartbeat") == b"7"
    finally:
        dist.destroy_process_group()


def test_block_masks_are_made_of_what_we_give() -> None:
    """model/block_masks.py hands FlexAttention its tables of blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    parameters = inspect.signature(BlockMask.from_kv_blocks).parameters
    expected = {"kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "mask_mod"}
    assert expected <= set(parameters)
    assert torch.nn.attention.flex_attention.flex_attention is not None
