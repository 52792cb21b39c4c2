"""`--dry-run`: parameters by formula against models that are built, sizes against real noise, the printed plan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.checks import read_config
from janus_pt.config.schema import Config, ModelConfig, ObjectiveConfig
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.examples import make_example
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.parallel.stages import pipeline_layers
from janus_pt.planning.activations import MicroBatch, in_flight
from janus_pt.planning.memory import stage_memory
from janus_pt.planning.parameters import (
    layer_parameters,
    model_parameters,
    stage_parameters,
    table_parameters,
)
from janus_pt.planning.plan import bubble, sample_length
from tests.support.ranks import run_ranks
from tests.support.runs import ROOT, environment, write_run_config

XL = str(ROOT / "configs" / "janus_xl.json")

models = st.builds(
    ModelConfig,
    vocab_size=st.integers(40, 90),
    source_vocab_size=st.none() | st.integers(40, 90),
    hidden_size=st.sampled_from([8, 24]),
    ffn_hidden_size=st.sampled_from([8, 20]),
    num_attention_heads=st.just(4),
    encoder_layers=st.integers(1, 3),
    decoder_layers=st.integers(1, 3),
    pre_layer_norm=st.booleans(),
    positions=st.sampled_from(["learned", "sinusoidal", "rotary"]),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    feed_forward=st.sampled_from(["plain", "gated"]),
    num_key_value_heads=st.sampled_from([None, 2]),
    max_positions=st.integers(4, 9),
    length_classes=st.integers(4, 9),
    embedding_layer_norm=st.booleans(),
    embedding_projection=st.booleans(),
    causal_self_attention=st.booleans(),
)


@given(models)
@settings(max_examples=15, deadline=None)
def test_the_count_is_the_models(model: ModelConfig) -> None:
    with torch.device("meta"):
        built = JanusTransformer(model)
    assert model_parameters(model) == sum(p.numel() for p in built.parameters())


def count_built(config: Config) -> int:
    """Parameters that this rank really builds."""
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import assemble

    groups.initialize(config.parallel.tensor_parallel_size, config.parallel.pipeline_parallel_size)
    count = sum(p.numel() for p in assemble(config).module.parameters())
    groups.shutdown()
    return count


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (2, 2)])
def test_a_rank_has_the_parameters_it_is_planned_with(
    tmp_path: Path, tensor: int, pipeline: int
) -> None:
    parallel = {
        "parallel__tensor_parallel_size": tensor,
        "parallel__pipeline_parallel_size": pipeline,
    }
    config = read_config(
        write_run_config(tmp_path, model__vocab_size=301, model__pre_layer_norm=True, **parallel)
    )
    expected = stage_parameters(config.model, tensor, pipeline_layers(config.model, pipeline))
    assert run_ranks(count_built, tensor * pipeline, config) == [
        count for count in expected for _ in range(tensor)
    ]


@given(models, st.integers(1, 4), st.sampled_from([1, 2, 4]))
def test_stages_share_out_the_chain(model: ModelConfig, stages: int, tensor_parallel: int) -> None:
    """Together they hold every layer once, and the table once each where its readers are apart."""
    stages = min(stages, model.encoder_layers + model.decoder_layers)
    counts = stage_parameters(model, tensor_parallel, pipeline_layers(model, stages))
    table = table_parameters(model, tensor_parallel)
    tables, rest = divmod(sum(counts) - sum(layer_parameters(model, tensor_parallel)), table)
    readers = 2 if model.source_vocab_size else 3
    assert rest == 0 and 1 <= tables <= min(readers, stages)


@pytest.mark.parametrize("kind", ["infill", "span", "uniform"])
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_expected_sizes_are_the_means_of_real_noise(kind: str, ratio: float) -> None:
    masking = {"kind": kind, "ratio": ratio, "mean_span_length": 3.0}
    objective = ObjectiveConfig.model_validate({"masking": masking})
    text = np.full(126, 7)
    fields = {"text": text} if kind == "infill" else {"source": text, "target": text}
    rng = np.random.default_rng(0)
    model = ModelConfig(vocab_size=40)
    made = [make_example(fields, rng, model=model, objective=objective) for _ in range(3000)]
    found = [
        (
            len(e.source),
            len(e.content),
            len(e.query),
            sum(len(index) for index in e.predict.values()),
        )
        for e in made
    ]
    sizes = sample_sizes(model, objective, 128)
    expected = (sizes.source, sizes.content, sizes.queries, sizes.predicted)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=0.03)


def test_the_first_stage_holds_the_most_micro_batches() -> None:
    assert [in_flight(4, stage, 32) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(4, stage, 2) for stage in range(4)] == [2, 2, 2, 1]
    assert bubble(1, 8) == 0 and bubble(4, 1) == 0.75 and bubble(4, 32) == pytest.approx(3 / 35)


def memory(*overrides: str, ranks: int = 16) -> list[Any]:
    config = read_config(XL, overrides, world_size=ranks)
    data_parallel = ranks // config.parallel.model_parallel_size
    return stage_memory(
        config,
        data_parallel,
        MicroBatch(3, sample_sizes(config.model, config.objective, 512), False),
    )


def test_what_saves_memory_saves_it() -> None:
    plain, recomputed = memory(), memory("parallel.activation_checkpointing=all")
    assert len(plain) == 4
    assert all(
        less.activations < more.activations for less, more in zip(recomputed, plain, strict=True)
    )
    for part in ("attention", "feed_forward"):
        selective = memory(f"parallel.activation_checkpointing={part}")
        for more, some, less in zip(plain, selective, recomputed, strict=True):
            assert less.activations < some.activations < more.activations
    single = ("parallel.pipeline_parallel_size=1",)
    stages = [memory(*single, f"parallel.zero_stage={stage}", ranks=32)[0] for stage in (1, 2, 3)]
    assert stages[0].optimizer == stages[1].optimizer and stages[1].gradients < stages[0].gradients
    assert stages[2].host == 0
    offloaded = memory(
        *single, "parallel.zero_stage=2", "parallel.offload_optimizer=true", ranks=32
    )[0]
    assert offloaded.optimizer == 0 and offloaded.host > stages[1].optimizer


def dry_run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "launchers" / "pretrain.py"), *arguments, "--dry-run"]
    return subprocess.run(
        call, capture_output=True, text=True, timeout=60, env={**environment(), **variables}
    )


def test_a_plan_for_a_cluster() -> None:
    done = dry_run("--config", XL, "--world-size", "64")
    assert done.returncode == 0, done.stderr
    model = read_config(XL).model
    for told in (
        f"{model_parameters(model):,}",
        "64 processes = 4 tensor x 4 pipeline x 4 data parallel",
        "8.6 %",
    ):
        assert told in done.stdout
    stages = [line for line in done.stdout.splitlines() if "encoder" in line or "decoder " in line]
    assert "source embedding" in done.stdout and "head" in done.stdout and len(stages) >= 4
    assert "sent by a GPU in a step" in done.stdout and "tensor layers" in done.stdout


def test_a_plan_needs_no_processes() -> None:
    """One process is started, the layout needs sixteen; the other ranks of a launch say nothing."""
    done = dry_run("--config", XL)
    assert done.returncode == 0 and "planned for 16 processes, not for the 1 started" in done.stdout
    assert dry_run("--config", XL, RANK="1", WORLD_SIZE="16").stdout == ""
    impossible = dry_run("--config", XL, "--world-size", "24")
    assert impossible.returncode == 2 and "does not fit 24 processes" in impossible.stderr


def test_a_plan_takes_the_corpus_at_hand(tmp_path: Path) -> None:
    config = read_config(write_run_config(tmp_path))
    assert sample_length(config.data, config.model.max_positions) == 14 + 2
    os.rename(tmp_path / "corpus", tmp_path / "elsewhere")
    assert sample_length(config.data, config.model.max_positions) == 24
