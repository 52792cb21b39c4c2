"""Slurm's environment becomes the one that torch.distributed and DeepSpeed read."""

from __future__ import annotations

import pytest

from janus_pt.utils.slurm import adopt_slurm

JOB = {
    "SLURM_JOB_ID": "4012345",
    "SLURM_NTASKS": "16",
    "SLURM_NODELIST": "gpu[003-004,010]",
    "SLURM_LOCALID": "0",
}
STEP = {
    **JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
}


def adopted(**environ: str) -> dict[str, str]:
    adopt_slurm(environ)
    return {key: value for key, value in environ.items() if not key.startswith("SLURM")}


def test_a_step_of_srun() -> None:
    environment = adopted(**STEP, SLURM_PROCID="9", SLURM_NODEID="2")
    expected = {
        "RANK": "9",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "11",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu003",
    }
    assert environment.pop("MASTER_PORT") == "22345"
    assert environment == expected


def test_the_three_variables_are_enough() -> None:
    environment = adopted(SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_LOCALID="1")
    assert (
        environment["RANK"],
        environment["WORLD_SIZE"],
        environment["LOCAL_RANK"],
        environment["LOCAL_WORLD_SIZE"],
    ) == (
        "1",
        "2",
        "1",
        "2",
    )
    assert environment["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a1", "a1"), ("a1,a[2-3]", "a1"), ("r[1-2]n[03-04]", "r1n03"), ("gpu-[7,9]", "gpu-7")],
)
def test_the_first_host_is_the_master(nodes: str, first: str) -> None:
    assert (
        adopted(**{**STEP, "SLURM_STEP_NODELIST": nodes}, SLURM_PROCID="0")["MASTER_ADDR"] == first
    )


def test_another_launcher_or_none_is_left_alone() -> None:
    torchrun = {"RANK": "5", "WORLD_SIZE": "8"}
    assert adopted(**STEP, SLURM_PROCID="0", **torchrun) == torchrun
    assert adopted(**JOB, SLURM_PROCID="0") == {}, "the shell of a batch script is one process"
    assert adopted() == {}
    environment = adopted(**STEP, SLURM_PROCID="0", MASTER_ADDR="10.0.0.1", MASTER_PORT="7")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "7")
