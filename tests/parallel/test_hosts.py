"""Two hosts of two ranks each: one is lost, the other ends with a message, and both go on where they were."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.hosts import kill_host, start, two_hosts
from tests.support.runs import launch, losses, read_records, write_run_config

pytestmark = pytest.mark.slow

LOST_AT_STEP, STEPS = 7, 12
SECONDS_TO_TRAIN, SECONDS_TO_NOTICE = 240, 60


def test_a_lost_host_ends_the_run_and_it_goes_on(tmp_path: Path) -> None:
    parallel = {"parallel__tensor_parallel_size": 2, "parallel__pipeline_parallel_size": 2}
    changes = {"run__max_steps": STEPS, "schedule__warmup_steps": 2, "model__pre_layer_norm": True}
    config = str(write_run_config(tmp_path, **changes, **parallel))
    whole, broken = tmp_path / "whole" / "metrics.jsonl", tmp_path / "broken" / "metrics.jsonl"
    done = launch(
        "pretrain.py", "--config", config, "--set", f"run.output_dir={whole.parent}", ranks=4
    )
    assert done.returncode == 0, done.stderr

    arguments = ["--config", config, "--set", f"run.output_dir={broken.parent}"]
    logs = [tmp_path / f"host{number}.log" for number in (1, 2)]
    with two_hosts() as hosts:
        agents = start(hosts, logs, *arguments)
        try:
            wait_for_step(LOST_AT_STEP, broken, logs)
            kill_host(agents[1])
            assert agents[0].wait(SECONDS_TO_NOTICE) != 0
        finally:
            for agent in agents:
                kill_host(agent)
        log = logs[0].read_text()
        assert "Connection closed by peer" in log or "Connection reset by peer" in log, log[-3000:]
        assert (broken.parent / "checkpoints" / "latest").read_text() == "step_5"

        agents = start(hosts, logs, *arguments, "--resume", "auto")
        try:
            assert [agent.wait(SECONDS_TO_TRAIN) for agent in agents] == [0, 0], logs[
                0
            ].read_text()[-3000:]
        finally:
            for agent in agents:
                kill_host(agent)
    assert losses(broken) == losses(whole)


def wait_for_step(step: int, metrics: Path, logs: list[Path]) -> None:
    deadline = time.monotonic() + SECONDS_TO_TRAIN
    while not (
        metrics.exists() and any(record["step"] >= step for record in read_records(metrics))
    ):
        assert time.monotonic() < deadline, "\n".join(log.read_text()[-3000:] for log in logs)
        time.sleep(0.05)
