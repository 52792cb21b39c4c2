"""DeepSpeed's optimizers without most of their waits: the host waits for the device once a step.

They look at the gradient's norm on the host up to six times: whether it is finite, for each group of
parameters, and whether clipping applies. Here the norm is moved to the host as soon as it is known,
and all that follows is computed there.

What remains: ZeRO-3 is at most two gathers and reductions ahead of the device, to bound memory; with
tensor parallelism ZeRO-2, and ZeRO-1 in float32, look for infinities once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from megatron.core import parallel_state
from torch import Tensor
from torch.overrides import TorchFunctionMode

_deepspeed_norm = bf16_optimizer.get_global_norm_of_tensors


def avoid_waits(optimizer: Any) -> None:
    """Make one of DeepSpeed's optimizers wait less; leaves any other as it is."""
    if isinstance(optimizer, BF16_Optimizer):
        # A function of the module: the optimizer has no method for it.
        bf16_optimizer.get_global_norm_of_tensors = _on_host(_deepspeed_norm)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer.scaled_global_norm = _on_host(optimizer.scaled_global_norm)
        # Every gradient is checked for infinities before the norm, which would show them as well:
        # but of whole parameters only the first tensor-parallel rank's copies are in the norm.
        if parallel_state.get_tensor_model_parallel_world_size() == 1:
            optimizer.check_overflow = lambda partition_gradients: None
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        _avoid_stage_3_waits(optimizer)


def _avoid_stage_3_waits(optimizer: Any) -> None:
    norms_of_groups = optimizer._get_norm_groups

    def norm_of_all() -> Tensor:
        return combine_grad_norm_groups(norms_of_groups())

    on_host = _on_host(norm_of_all)
    optimizer._get_norm_groups = lambda: [on_host()]
    stream = optimizer.reduce_and_partition_stream
    # Offloaded gradients are read by the host, which must wait for them.
    if isinstance(stream, torch.cuda.Stream) and not optimizer.offload_optimizer:
        optimizer.reduce_and_partition_stream = _OrderedStream(
            stream_id=stream.stream_id,
            device_index=stream.device_index,
            device_type=stream.device_type,
        )
    # Small parameters, which every rank keeps whole, are gathered behind the update.
    for parameter in optimizer.persistent_parameters[:1]:
        parameter.all_gather = _in_order(parameter.all_gather)


class _OrderedStream(torch.cuda.Stream):
    """A stream for which other streams wait, where DeepSpeed would make the host wait."""

    def synchronize(self) -> None:
        """What the current stream is given from now on comes after what this one has been given."""
        torch.cuda.current_stream(self.device).wait_stream(self)


def _in_order(gather: Callable[..., None]) -> Callable[..., None]:
    """A gathering after which the host does not wait: what the device is given from now on comes after it anyway."""

    def gather_in_order(*arguments: Any, **options: Any) -> None:
        accelerator = get_accelerator()
        accelerator.synchronize = lambda *_: None
        try:
            gather(*arguments, **options)
        finally:
            # The class has its own.
            del accelerator.synchronize

    return gather_in_order


def _on_host(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, with its result on the host."""

    def norm_on_host(*arguments: Any, **options: Any) -> Tensor:
        with _NumbersOnDevice():
            found = norm(*arguments, **options)
        return found.cpu()

    return norm_on_host


class _NumbersOnDevice(TorchFunctionMode):
    """Where DeepSpeed marks a norm that is not finite by -1, keep it from waiting.

    It copies the number to the device, and then back to fill it in.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.tensor and isinstance(args[0], int | float):
            # Made by a kernel, which has the number as an argument.
            return torch.full((), args[0], **options)
        if func is Tensor.masked_fill_ and isinstance(args[2], Tensor):
            tensor, mask, value = args
            return tensor.copy_(torch.where(mask, value, tensor))
        return func(*args, **options)
