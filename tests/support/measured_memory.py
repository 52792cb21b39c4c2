"""How much memory a training step takes, measured: every byte that torch's CPU allocator hands out.

The profiler reports each allocation and release of the calling thread; their running sum from before the model is
built, at its highest in the second step, is what `torch.cuda.max_memory_allocated` would be on a GPU. Scratch of
kernels counts, memory that the allocator keeps in reserve, the interpreter and the data loader do not.

    python -m tests.support.measured_memory        prints docs/reference/memory.md's table
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from janus_pt.config.schema import Config
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.packing.batch import Batch
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.memory import StageMemory, stage_memory
from tests.support.ranks import run_ranks

MIB = 2**20
MODERN = {
    "feed_forward": "gated",
    "activation": "silu",
    "norm": "rms_norm",
    "positions": "rotary",
    "pre_layer_norm": True,
}
CASES: dict[str, dict[str, Any]] = {
    "float32, ZeRO-1": {},
    "float32, ZeRO-1, dropout": {"dropout": 0.1, "samples": 3},
    "float32, ZeRO-0, large vocabulary": {"zero": 0, "vocab": 24000, "hidden": 128, "samples": 2},
    "float32, ZeRO-2, 2 micro-batches, deep": {
        "zero": 2,
        "layers": 4,
        "accumulate": 2,
        "length": 96,
    },
    "bfloat16, ZeRO-1, 2 micro-batches": {"dtype": "bfloat16", "accumulate": 2, "hidden": 384},
    "bfloat16, ZeRO-2, pre-LayerNorm, relu": {
        "dtype": "bfloat16",
        "zero": 2,
        "pre": True,
        "activation": "relu",
    },
    "float32, ZeRO-1, activation checkpointing": {
        "checkpointing": "all",
        "layers": 4,
        "samples": 8,
    },
    "float32, ZeRO-1, attention recomputed": {
        "checkpointing": "attention",
        "layers": 4,
        "samples": 8,
    },
    "float32, ZeRO-1, feed-forward recomputed": {
        "checkpointing": "feed_forward",
        "layers": 4,
        "samples": 8,
    },
    "float32, ZeRO-1, gated, RMSNorm, rotary": {"kinds": MODERN},
    "float32, ZeRO-1, grouped heads": {"kinds": {"num_key_value_heads": 1}},
    "float32, ZeRO-1, attention dropout": {"attention_dropout": 0.1, "length": 192},
    "float32, ZeRO-1, 2 ranks": {"ranks": 2},
    "bfloat16, ZeRO-1, 2 ranks": {"ranks": 2, "dtype": "bfloat16", "hidden": 384},
    "bfloat16, ZeRO-1, 2 ranks, reduced in bfloat16": {
        "ranks": 2,
        "dtype": "bfloat16",
        "hidden": 384,
        "reduce": "bfloat16",
    },
    "float32, ZeRO-3, 2 ranks": {"ranks": 2, "zero": 3, "hidden": 384},
    "float32, ZeRO-1, tensor 2": {"tensor": 2, "dropout": 0.1},
    "float32, ZeRO-1, tensor 2, sequence parallel": {
        "tensor": 2,
        "dropout": 0.1,
        "sequence": True,
    },
    "bfloat16, ZeRO-1, pipeline 2, 4 micro-batches": {
        "pipeline": 2,
        "dtype": "bfloat16",
        "accumulate": 4,
    },
    "float32, ZeRO-1, pipeline 2, 4 micro-batches": {
        "pipeline": 2,
        "layers": 3,
        "accumulate": 4,
        "samples": 3,
    },
}


def build_config(
    vocab: int = 8000, hidden: int = 256, layers: int = 2, samples: int = 4, accumulate: int = 1, ranks: int = 1,
    zero: int = 1, dtype: str = "float32", dropout: float = 0.0, attention_dropout: float = 0.0, length: int = 128,
    pre: bool = False, activation: str = "gelu", checkpointing: str = "none", tensor: int = 1, pipeline: int = 1,
    kinds: dict[str, Any] | None = None, reduce: str = "float32",
    sequence: bool = False,
) -> Config:  # fmt: skip
    """A small configuration for `ranks` data-parallel ranks; buckets for the reduction as small as the model."""
    model = dict(
        vocab_size=vocab, hidden_size=hidden, ffn_hidden_size=4 * hidden, num_attention_heads=4, encoder_layers=layers,
        decoder_layers=layers, max_positions=length, dropout=dropout, attention_dropout=attention_dropout,
        pre_layer_norm=pre, activation=activation,
    )  # fmt: skip
    model |= kinds or {}
    batch = dict(
        batch_unit="sequences",
        global_batch_size=samples * accumulate * ranks,
        micro_batch_size=samples,
    )
    return Config.model_validate(
        {
            "model": model,
            "data": {"train": [{"path": "none"}], **batch},
            "optimizer": {"clip_norm": 0.0},
            "parallel": {
                "tensor_parallel_size": tensor,
                "sequence_parallel": sequence,
                "pipeline_parallel_size": pipeline,
                "zero_stage": zero,
                "activation_checkpointing": checkpointing,
                "gradient_reduce_dtype": reduce,
            },
            "precision": {"dtype": dtype},
            "run": {"output_dir": "none", "max_steps": 2},
            "deepspeed": {
                "zero_optimization": {
                    "reduce_bucket_size": 200_000,
                    "allgather_bucket_size": 200_000,
                }
            },
        }
    )


def micro_batches(config: Config, seed: int) -> list[Batch]:
    """This rank's batches of a step: random tokens, real noise."""
    rng = np.random.default_rng(seed)
    length, samples = config.model.max_positions, config.data.micro_batch_size

    def example() -> Any:
        text = rng.integers(5, config.model.vocab_size, length - 2)
        return make_example({"text": text}, rng, model=config.model, objective=config.objective)

    from megatron.core import parallel_state

    count = config.data.micro_batches_per_step // parallel_state.get_data_parallel_world_size()
    return [
        collate_examples([example() for _ in range(samples)], config.objective)
        for _ in range(count)
    ]


def measure(case: dict[str, Any]) -> float:
    """Bytes at the peak of the second step, on this rank."""
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import assemble
    from janus_pt.train.step import train_step

    torch.set_num_threads(1)  # allocations of other threads would not be seen
    config = build_config(**case)
    groups.initialize(config.parallel.tensor_parallel_size, config.parallel.pipeline_parallel_size)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profile:
        engine = assemble(config)
        for step in (1, 2):
            with torch.profiler.record_function(f"step {step}"):
                train_step(engine, micro_batches(config, step), step, 1)
    groups.shutdown()
    return _peak(profile.profiler.kineto_results.events())


def _peak(events: Any) -> float:
    """The highest sum of allocations since "step 2" began."""
    since = next(event.start_ns() for event in events if event.name() == "step 2")
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    times, sizes = np.array(changes).T
    return float(np.cumsum(sizes)[times >= since].max())


def estimate(case: dict[str, Any]) -> list[StageMemory]:
    """The formula's answer for the same configuration, by stage."""
    config = build_config(**case)
    sizes = sample_sizes(config.model, config.objective, config.model.max_positions)
    batch = MicroBatch(config.data.micro_batch_size, sizes, on_cpu=True)
    return stage_memory(config, case.get("ranks", 1), batch)


def measured(case: dict[str, Any]) -> list[float]:
    """`measure` in processes of its own: the largest rank of each stage."""
    stages = case.get("pipeline", 1)
    each = case.get("ranks", 1) * case.get("tensor", 1)
    found = run_ranks(measure, stages * each, case)
    return [max(found[stage * each : (stage + 1) * each]) for stage in range(stages)]


if __name__ == "__main__":
    print("| configuration | estimate, MiB | measured, MiB | difference |\n|---|---|---|---|")
    for name, case in CASES.items():
        for stage, (formula, real) in enumerate(zip(estimate(case), measured(case), strict=True)):
            of_stage = f", stage {stage}" * ("pipeline" in case)
            row = f"{formula.peak / MIB:.0f} | {real / MIB:.0f} | {100 * (formula.peak / real - 1):+.1f} %"
            print(f"| {name}{of_stage} | {row} |", flush=True)
