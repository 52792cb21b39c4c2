"""FlexAttention with block masks, compiled so that no call can run in its unfused form."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# Otherwise sizes that happen to be equal in the first batch have to be in all that follow, and each
# batch in which they are not makes torch compile once more.
symbolic_shapes.use_duck_shape = False

FORWARD_WARPS = 8
"""With torch's own choice for the forward kernel, 4, our masks need more registers than there are: at
head size 64 in bfloat16 a kilobyte a thread is spilled (torch 2.13, compiled for sm_90)."""
LARGE_HEAD = 64
"""Above this size the backward kernel has smaller blocks."""
LARGE_HEAD_BLOCK = 64
"""With torch's own blocks for sm_90, of 128 queries or keys, the backward kernel spills at head size 128, and at
80, which it computes as 128."""
MIN_HEAD_SIZE = 16
"""Triton multiplies no smaller matrices."""

Attend = Callable[[Tensor, Tensor, Tensor, BlockMask, bool], Tensor]


def attend_blocks(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    """Scaled dot-product attention `[batch, heads, queries, head_size]` under a block mask.

    Keys and values may have fewer heads than queries (`attention.attend`).
    """
    is_grouped = keys.shape[1] != queries.shape[1]
    # The eager form writes all scores. On a CPU only tests come here.
    if queries.device.type == "cpu":
        return _attend(queries, keys, values, mask, is_grouped)
    attend = _compiled(mask.mask_mod.__code__, torch.is_grad_enabled())
    return attend(queries, keys, values, mask, is_grouped)


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask, is_grouped: bool
) -> Tensor:
    return flex_attention(
        queries,
        keys,
        values,
        block_mask=mask,
        enable_gqa=is_grouped,
        kernel_options=_kernel_options(queries.shape[-1]),
    )


def _kernel_options(head_size: int) -> Any:
    """Options of the kernels that replace torch's own choices, so that none spills registers."""
    options = {"fwd_num_warps": FORWARD_WARPS}
    if head_size > LARGE_HEAD:
        options["bwd_BLOCK_N1"] = options["bwd_BLOCK_M2"] = LARGE_HEAD_BLOCK
    return options


@cache
def _compiled(mask_code: CodeType, has_gradient: bool) -> Attend:
    """`_attend`, compiled for the masks of one function, with or without a gradient.

    torch counts the compiled forms of a code object. After eight it runs what FlexAttention does
    without a compiler, all scores written to memory, and says so in a warning. So each kind gets a
    code object of its own, and a count; a whole graph is asked for, so that the limit raises.
    """
    code = _attend.__code__.replace(co_name=f"_attend_{mask_code.co_firstlineno}_{has_gradient}")
    return torch.compile(FunctionType(code, globals()), dynamic=True, fullgraph=True)
