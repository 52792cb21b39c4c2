"""Operations of a step by formula: sums by hand, and whole steps as they were counted on the null GPU."""

from __future__ import annotations

import pytest

from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.parallel.stages import pipeline_layers
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.launches import (
    LAUNCH_S,
    LOSS_CHUNK,
    MICRO_BATCH,
    STEP,
    host_seconds,
    stage_operations,
)
from janus_pt.planning.traffic import Traffic
from tests.support.runs import ROOT

LENGTH = 512


def read(*changes: str) -> Config:
    """`janus_large` with changes, on 64 ranks."""
    few = "data.micro_batch_size=1024"
    return read_config(ROOT / "configs" / "janus_large.json", [few, *changes], 64)


def batch_of(config: Config, samples: int) -> MicroBatch:
    """A micro-batch of samples of 512 tokens on a GPU."""
    sizes = sample_sizes(config.model, config.objective, LENGTH)
    return MicroBatch(samples, sizes, on_cpu=False)


def whole(config: Config) -> range:
    """All layers of the model."""
    [layers] = pipeline_layers(config.model, 1)
    return layers


def test_layers_count_each_and_the_rest_once() -> None:
    config = read()
    found = stage_operations(config, batch_of(config, 1), whole(config))
    for operations, parts in zip(found, (MICRO_BATCH[1], STEP[1]), strict=True):
        by_hand = 12 * parts.encoder_layer + 12 * parts.decoder_layer + parts.rest
        assert operations == pytest.approx(by_hand)


def test_stages_share_the_operations() -> None:
    config = read("parallel.pipeline_parallel_size=4")
    batch = batch_of(config, 1)
    stages = pipeline_layers(config.model, 4)
    of_stages = [stage_operations(config, batch, layers) for layers in stages]
    alone = stage_operations(config, batch, whole(read()))
    assert [sum(part) for part in zip(*of_stages, strict=True)] == pytest.approx(alone)


def test_larger_micro_batches_add_chunks_of_the_losses_alone() -> None:
    config = read()
    small, large = (stage_operations(config, batch_of(config, n), whole(config)) for n in (1, 24))
    added = large[0] - small[0]
    # 19,680 predicting slots for 24 samples, in chunks of 2^26 logits of 50,000 each.
    assert added == LOSS_CHUNK * 14 and large[1] == small[1]


def test_the_host_launches_collectives_too() -> None:
    config = read()
    batch = batch_of(config, 1)
    in_micro_batches, once = stage_operations(config, batch, whole(config))
    traffic = [
        Traffic("data", "gradients", "reduce", 64, 1e9, calls=7),
        Traffic("tensor", "layers", "all-reduce", 4, 1e9, calls=30),
    ]
    found = host_seconds(config, batch, whole(config), traffic, micro_batches=3)
    assert found == pytest.approx((LAUNCH_S * (3 * in_micro_batches + 30), LAUNCH_S * (once + 7)))


def test_graphs_launch_less() -> None:
    config = read("run.cuda_graphs=true")
    batch = batch_of(config, 2)
    graphs, _ = stage_operations(config, batch, whole(config))
    one_by_one, _ = stage_operations(read(), batch, whole(config))
    assert 0 < graphs < one_by_one / 10


@pytest.mark.parametrize(
    ("name", "zero", "counted"),
    [
        ("base", 1, 2551),
        ("large", 1, 4723),
        ("large", 2, 6854),
        ("base", 3, 5860),
        ("large", 3, 11222),
    ],
)
def test_three_micro_batches_of_two_samples_as_counted(name: str, zero: int, counted: int) -> None:
    few = ["data.micro_batch_size=1024", f"parallel.zero_stage={zero}"]
    config = read_config(ROOT / "configs" / f"janus_{name}.json", few, 64)
    in_micro_batch, once = stage_operations(config, batch_of(config, 2), whole(config))
    assert 3 * in_micro_batch + once == pytest.approx(counted, rel=0.02)
