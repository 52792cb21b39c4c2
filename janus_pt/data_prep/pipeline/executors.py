"""Running the stages: on this machine, by Slurm, or on a Ray cluster."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, redirect_stderr
from functools import partial
from pathlib import Path
from shlex import quote

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger
from tqdm import tqdm

from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.stages import Stage, make_stages
from janus_pt.data_prep.pipeline.state import LOGS
from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.extras import require
from janus_pt.utils.files import NO_ROOM
from janus_pt.utils.processes import allow_open_files, worker_pool

ATTEMPTS = 3
"""A stage is begun again so often while worker processes die and none of its tasks is finished in between."""
SHOWN = 10
"""Failed tasks that a message lists."""

Runner = Callable[[int, Sequence[int]], Iterator[tuple[int, str]]]
"""Runs tasks of the stage of this number; yields (task, what went wrong, or nothing) of each as it ends, and nothing of
a task whose process died."""


def run_local(config: CorpusBuildConfig, workers: int) -> None:
    """Run all stages with worker processes of this machine; finished tasks are not done again.

    datatrove's own pool waits for ever for a worker that was killed, and stops all tasks when one fails.

    Raises:
        UserError: tasks failed, each with its reason; what the others did is kept.
    """
    _quiet()
    stages = make_stages(config)
    workers = min(workers, max(stage.tasks for stage in stages))
    text = config.model_dump_json()
    with ExitStack() as stack:
        # One pool for all stages: a process takes seconds to import the libraries.
        pools = [stack.enter_context(worker_pool(workers, _quiet))]

        def run(stage: int, ranks: Sequence[int]) -> Iterator[tuple[int, str]]:
            futures: dict[Future[str], int] = {}
            try:
                # A pool whose process died refuses more tasks at once.
                for rank in ranks:
                    futures[pools[-1].submit(run_task, text, stage, rank)] = rank
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BrokenProcessPool:
                warn("a worker process died (out of memory?); its tasks are begun again")
                # A pool that lost a process takes no more work.
                pools.append(stack.enter_context(worker_pool(workers, _quiet)))

        _run_stages(config, stages, run)


def _run_stages(config: CorpusBuildConfig, stages: Sequence[Stage], run: Runner) -> None:
    """Run all stages. `UserError` if tasks failed, or their processes died each time."""
    for index, stage in enumerate(stages):
        failed: dict[int, str] = {}
        pending = _executor(config, stage).get_incomplete_ranks()
        attempts = ATTEMPTS
        with tqdm(total=stage.tasks, initial=stage.tasks - len(pending), desc=stage.name) as bar:
            while pending and attempts:
                for rank, problem in run(index, pending):
                    bar.update()
                    if problem:
                        failed[rank] = problem
                remaining = _executor(config, stage).get_incomplete_ranks()
                attempts = ATTEMPTS if len(remaining) < len(pending) else attempts - 1
                pending = [rank for rank in remaining if rank not in failed]
        _refuse_failures(config, stage, failed, pending)
        _merge_statistics(config, stage)


def _quiet() -> None:
    """Nothing on the terminal from datatrove, whose log of each task is a file."""
    logger.remove()


def run_task(config_json: str, stage_index: int, rank: int) -> str:
    """Run one task of one stage, in a worker process. Returns what went wrong, or nothing."""
    # Not the objects: some of datatrove's cannot be sent to a process, and open files must not be.
    config = CorpusBuildConfig.model_validate_json(config_json)
    stage = make_stages(config)[stage_index]
    # To find duplicates is to read the hashes of all tasks at once.
    allow_open_files()
    executor = _executor(config, stage)
    log = Path(config.work_folder) / LOGS / stage.name / "logs" / f"task_{rank:05d}.log"
    try:
        # Traces and progress bars go to the log alone.
        with redirect_stderr(io.StringIO()):
            executor._run_for_rank(rank, local_rank=1)
    except UserError as error:
        return str(error)
    except OSError as error:
        if error.errno in NO_ROOM:
            place = error.filename or config.work_folder
            return f"{place}: {error.strerror}: make room and run again"
        return f"{type(error).__name__}: {error} (see {log})"
    # Whatever a library raises for one task, the others go on.
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno}; see {log})"
    return ""


def _executor(config: CorpusBuildConfig, stage: Stage) -> LocalPipelineExecutor:
    return LocalPipelineExecutor(stage.steps(), tasks=stage.tasks, logging_dir=_logs(config, stage))


def _logs(config: CorpusBuildConfig, stage: Stage) -> str:
    """Absolute, since a task of Slurm or Ray begins in another folder."""
    return str(Path(config.work_folder).absolute() / LOGS / stage.name)


def _refuse_failures(
    config: CorpusBuildConfig, stage: Stage, failed: dict[int, str], pending: Sequence[int]
) -> None:
    reasons = [f"task {rank}: {reason}" for rank, reason in sorted(failed.items())]
    reasons += [f"task {rank}: its worker process died each time" for rank in pending]
    if not reasons:
        return
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    raise UserError(
        f"stage {stage.name}: {len(reasons)} of {stage.tasks} tasks failed; the others' work is kept, and the same "
        "command continues\n  " + "\n  ".join(reasons[:SHOWN] + more)
    )


def _merge_statistics(config: CorpusBuildConfig, stage: Stage) -> None:
    """datatrove's counts and times of all tasks, in the stage's folder of logs."""
    folder = Path(_logs(config, stage))
    total = PipelineStats()
    for path in sorted((folder / "stats").glob("*.json")):
        total += PipelineStats.from_json(json.loads(path.read_text()))
    with (folder / "stats.json").open("w") as file:
        total.save_to_disk(file)


def run_ray(config: CorpusBuildConfig, workers: int) -> None:
    """Run all stages on a Ray cluster; finished tasks are not done again.

    datatrove's own executor waits for ever for a process that was killed within a task, and only logs what failed.

    Raises:
        UserError: there is no cluster, or tasks failed, each with its reason; what the others did is kept.
    """
    ray = require("ray", "ray")
    _quiet()
    try:
        ray.init(address=config.ray.address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"ray.address {config.ray.address}: {error}; start a cluster with ray start --head"
        ) from None
    room = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    if room < _ray_memory(config):
        # No mistake where a cluster grows: Ray would wait.
        warn(
            f"ray.memory_gb {config.ray.memory_gb:g}: no node has it now, the largest {room / 2**30:.2f}"
        )
    try:
        _run_stages(config, make_stages(config), partial(_run_on_ray, config, workers))
    finally:
        ray.shutdown()


def _ray_memory(config: CorpusBuildConfig) -> int:
    """Bytes that a task asks for."""
    return int(config.ray.memory_gb * 2**30)


def _run_on_ray(
    config: CorpusBuildConfig, workers: int, stage: int, ranks: Sequence[int]
) -> Iterator[tuple[int, str]]:
    import ray

    # Not again by Ray itself, which knows no end where memory runs out.
    task = ray.remote(max_retries=0, num_cpus=1, memory=_ray_memory(config))(run_task_in)
    text, folder = config.model_dump_json(), str(Path.cwd())
    waiting = list(reversed(ranks))
    running: dict[ray.ObjectRef, int] = {}
    died = 0
    while waiting or running:
        while waiting and len(running) < workers:
            rank = waiting.pop()
            running[task.remote(folder, text, stage, rank)] = rank
        for done in ray.wait(list(running))[0]:
            rank = running.pop(done)
            try:
                yield rank, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                yield rank, str(error.cause)
            except ray.exceptions.RayError:
                died += 1
    if died:
        warn(f"{died} tasks died with their process or node; they are begun again")


def run_task_in(folder: str, config_json: str, stage_index: int, rank: int) -> str:
    """`run_task` on any node, in the folder where the build was started: paths may be relative to it."""
    _quiet()
    try:
        os.chdir(folder)
    except OSError as error:
        node = socket.gethostname()
        return f"{node}: {folder}: {error.strerror}: start from a folder that all nodes share"
    return run_task(config_json, stage_index, rank)


def submit_slurm(config: CorpusBuildConfig, workers: int) -> list[tuple[str, str]]:
    """Submit a job array for each stage, each waiting for the one before. Returns (stage, job)."""
    from datatrove.executor import SlurmPipelineExecutor

    _quiet()
    slurm = config.slurm
    # datatrove's default repeats the shell's start-up; the same Python is enough.
    setup = slurm.setup or f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH"
    jobs = []
    before: PipelineExecutor | None = None
    for stage in make_stages(config):
        before = SlurmPipelineExecutor(
            stage.steps(),
            tasks=stage.tasks,
            workers=min(workers, stage.tasks),
            logging_dir=_logs(config, stage),
            time=slurm.time,
            partition=slurm.partition,
            qos=slurm.qos or "",
            mem_per_cpu_gb=slurm.memory_gb,
            env_command=setup,
            max_array_size=slurm.max_array_size,
            sbatch_args=dict(slurm.arguments),
            job_name=f"corpus_{stage.name}",
            depends=before,
        )
        try:
            before.run()
        except FileNotFoundError as error:
            if error.errno == errno.ENOENT and error.filename == "sbatch":
                raise UserError(
                    "there is no sbatch here: run on a node that submits jobs"
                ) from None
            raise
        jobs.append((stage.name, "finished" if before.job_id == -1 else str(before.job_id)))
    return jobs
