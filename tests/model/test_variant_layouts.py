"""Kinds of layers on several ranks: the same run as in one process, checkpoints of one layout on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.layouts import SAVED, Comparison, Layout, difference
from tests.support.runs import write_run_config

pytestmark = pytest.mark.slow

ONE = Layout("one process")
TENSOR = Layout("TP2", 2, tensor=2)
OTHERS = [TENSOR, Layout("PP2", 2, pipeline=2), Layout("DP2, ZeRO-3", 2, stage=3)]
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {"feed_forward": "gated", "norm": "rms_norm"},
    "imported": {
        "activation": "gelu_tanh",
        "positions": "marian",
        "output_bias": True,
        "source_suffix": [2, 5],
        "target_prefix": [2, 1],
    },
    "all": {
        "norm": "rms_norm",
        "pre_layer_norm": True,
        "feed_forward": "gated",
        "activation": "silu",
        "positions": "rotary",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=name, marks=[] if name == "all" else pytest.mark.exhaustive)
        for name, variant in VARIANTS.items()
    ],
)
def test_layouts_train_the_same_model(tmp_path: Path, variant: dict[str, Any]) -> None:
    comparison = Comparison(tmp_path)
    write_run_config(
        tmp_path,
        data__num_workers=0,
        model__dropout=0.1,
        checkpoint__every=SAVED,
        checkpoint__keep_last=9,
        run__max_steps=2 * SAVED,
        run__eval_every=SAVED,
        **{f"model__{name}": value for name, value in variant.items()},
    )
    one = comparison.run(ONE)
    for layout in OTHERS:
        assert difference(comparison.run(layout), one) < 1e-5, layout.name
    # Converted: shards put together, and cut again.
    assert difference(comparison.run(ONE, TENSOR), one, after=SAVED) < 1e-5
    assert difference(comparison.run(TENSOR, ONE), one, after=SAVED) < 1e-5
