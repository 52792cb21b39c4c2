"""Small configurations of every objective, and what their steps cost."""

from __future__ import annotations

import gc
from typing import Any

import torch

from janus_pt.config.schema import Config
from tests.support.null_gpu import training

LENGTH = 96
MODEL = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "max_positions": LENGTH,
    "dropout": 0.1,
}


def build_config(
    objective: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    dtype: str = "bfloat16",
    clip_norm: float = 1.0,
    micro_batches: int = 2,
    ranks: int = 1,
    deepspeed: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
) -> Config:
    """A small configuration: `micro_batches` of 4 samples for each of `ranks` data-parallel ranks."""
    return Config.model_validate(
        {
            "model": {**MODEL, **(model or {})},
            "objective": objective or {},
            "data": {
                "train": [{"path": "none"}],
                "batch_unit": "sequences",
                "global_batch_size": 4 * micro_batches * ranks,
                "micro_batch_size": 4,
            },
            "optimizer": {"clip_norm": clip_norm},
            "parallel": parallel or {},
            "precision": {"dtype": dtype},
            "run": {"output_dir": "none", "max_steps": 2, **(run or {})},
            "deepspeed": deepspeed or {},
        }
    )


def costs(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a step of each configuration costs, all in this process."""
    found = {}
    for name, case in cases.items():
        config = build_config(**case)
        engine = training.start(config)
        batches = training.step_batches(config, engine, LENGTH)
        found[name] = training.measure(engine, batches).as_dict()
        print(name, found[name]["operations"], found[name]["waits"], flush=True)
        # DeepSpeed's engine is part of cycles.
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return found
