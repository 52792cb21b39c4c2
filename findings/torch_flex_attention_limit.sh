#!/usr/bin/env bash
# torch.compile(flex_attention) runs unfused, which writes all scores to memory, once eight forms of it were
# compiled: Dynamo's limit raises nothing, and only the first such call warns. fullgraph=True raises.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import warnings

import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

QUERY = torch.randn(1, 1, 128, 16)


def mask(number):
    """Every mask is a function of its own: encoder's, decoder's, of training and of decoding."""
    names = {}
    exec(f"def visible(b, h, query, key): return query >= key - {number}", names)
    return create_block_mask(names["visible"], None, None, 128, 128, device="cpu")


def calls(**options):
    """The numbers of forms compiled and of the first call that warned, and an error."""
    torch._dynamo.reset()
    counter, warned = CompileCounter(), None
    attend = torch.compile(flex_attention, backend=counter, dynamic=True, **options)
    try:
        for number in range(1, 13):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                attend(QUERY, QUERY, QUERY, block_mask=mask(number))
            if warned is None and any("unfused" in str(w.message) for w in caught):
                warned = number
    except Exception as error:
        return counter.frame_count, warned, type(error).__name__
    return counter.frame_count, warned, None


silent, strict = calls(), calls(fullgraph=True)
print("12 masks: compiled forms, call that warned, error:", silent)
print("12 masks with fullgraph=True:", strict)
assert silent == (8, 9, None)
assert strict[0] == 8 and strict[2] is not None
PYTHON
