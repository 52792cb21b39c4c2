"""Running the stages: on this machine, by Slurm, or on a Ray cluster."""

from __future__ import annotations

import errno
import io
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, redirect_stderr
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
from janus_pt.utils.files import NO_ROOM
from janus_pt.utils.processes import worker_pool

ATTEMPTS = 3
"""A stage is begun again so often while worker processes die and none of its tasks is finished in between."""
SHOWN = 10
"""Failed tasks that a message lists."""


def run_local(config: CorpusBuildConfig, workers: int) -> None:
    """Run all stages with worker processes of this machine; finished tasks are not done again.

    datatrove's own pool waits for ever for a worker that was killed, and stops all tasks when one fails.

    Raises:
        UserError: tasks failed, each with its reason; what the others did is kept.
    """
    _quiet()
    stages = make_stages(config)
    workers = min(workers, max(stage.tasks for stage in stages))
    with ExitStack() as stack:
        # One pool for all stages: a process takes seconds to import the libraries.
        pool = stack.enter_context(worker_pool(workers, _quiet))
        for index, stage in enumerate(stages):
            failed: dict[int, str] = {}
            pending = _executor(config, stage).get_incomplete_ranks()
            attempts = ATTEMPTS
            with tqdm(
                total=stage.tasks, initial=stage.tasks - len(pending), desc=stage.name
            ) as bar:
                while pending and attempts:
                    for rank, problem in _run_tasks(pool, config, index, pending):
                        bar.update()
                        if problem:
                            failed[rank] = problem
                    remaining = _executor(config, stage).get_incomplete_ranks()
                    attempts = ATTEMPTS if len(remaining) < len(pending) else attempts - 1
                    pending = [rank for rank in remaining if rank not in failed]
                    if pending:
                        # A pool that lost a process takes no more work.
                        pool = stack.enter_context(worker_pool(workers, _quiet))
            _refuse_failures(config, stage, failed, pending)
            _merge_statistics(config, stage)


def _run_tasks(
    pool: ProcessPoolExecutor, config: CorpusBuildConfig, stage: int, ranks: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Yield (task, what went wrong, or nothing) of each task as it ends, until a worker process dies."""
    text = config.model_dump_json()
    futures = {pool.submit(run_task, text, stage, rank): rank for rank in ranks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        warn("a worker process died (out of memory?); its tasks are begun again")


def _quiet() -> None:
    """Nothing on the terminal from datatrove, whose log of each task is a file."""
    logger.remove()


def run_task(config_json: str, stage_index: int, rank: int) -> str:
    """Run one task of one stage, in a worker process. Returns what went wrong, or nothing."""
    # Not the objects: some of datatrove's cannot be sent to a process, and open files must not be.
    config = CorpusBuildConfig.model_validate_json(config_json)
    stage = make_stages(config)[stage_index]
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

    Raises:
        UserError: there is no cluster, or tasks failed: datatrove only logs that.
    """
    from datatrove.executor import RayPipelineExecutor

    from janus_pt.utils.extras import require

    ray = require("ray", "ray")
    _quiet()
    try:
        ray.init(address=config.ray.address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"ray.address {config.ray.address}: {error}; start a cluster with ray start --head"
        ) from None
    for stage in make_stages(config):
        executor = RayPipelineExecutor(
            stage.steps(),
            tasks=stage.tasks,
            workers=workers,
            logging_dir=_logs(config, stage),
            mem_per_cpu_gb=config.ray.memory_gb,
        )
        executor.run()
        incomplete = executor.get_incomplete_ranks()
        logs = Path(_logs(config, stage)) / "logs"
        _refuse_failures(config, stage, {rank: f"see {logs}" for rank in incomplete}, [])


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
