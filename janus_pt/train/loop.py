"""The training loop: read, step, report, validate, save, export."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from janus_pt.checkpoint.async_save import EXIT_NOT_SAVED
from janus_pt.config.reader import to_json
from janus_pt.config.schema import Config
from janus_pt.data.corpus import tokenizer_files
from janus_pt.data.loader import valid_batches
from janus_pt.export.run_origin import run_origin
from janus_pt.export.write_run import write_adapters, write_merged, write_whole
from janus_pt.packing.batch import Batch
from janus_pt.parallel import groups
from janus_pt.parallel.gather import full_weights
from janus_pt.parallel.job_store import meet, part
from janus_pt.train.early_stopping import (
    exported_step,
    out_of_patience,
    record_validation,
    return_to_best,
)
from janus_pt.train.report.instruments import Instruments
from janus_pt.train.report.reporter import Reporter
from janus_pt.train.run import example_functions, prepare
from janus_pt.train.schedule import learning_rate
from janus_pt.train.state import Run
from janus_pt.train.step import StepResult, evaluate, report, train_step
from janus_pt.train.watch.divergence import EXIT_DIVERGED
from janus_pt.train.watch.heartbeat import Heartbeat, is_peer_failure
from janus_pt.train.watch.stop_requests import StopRequests, describe_stop
from janus_pt.utils.errors import UserError
from janus_pt.utils.redact import redact


def train(config: Config, resume: bool, instruments: Instruments | None = None) -> None:
    """Train to `run.max_steps`, validating and saving on the way, and export; all ranks take part.

    Args:
        instruments: record steps and memory.

    Raises:
        UserError: configuration, data or checkpoint have an error.
        SystemExit: the run was asked to stop, could not save, or has lost a rank; with the exit
            code.
    """
    heartbeat = Heartbeat(config.run.peer_timeout)
    instruments = instruments or Instruments(range(0), False, Path(config.run.output_dir))
    try:
        run = prepare(config, resume, heartbeat, instruments.start)
        heartbeat.before_exit(run.saver.give_up)
        try:
            code = fit(run, heartbeat, instruments)
        finally:
            run.saver.give_up()
        # From here on ranks end at different times, which is no failure.
        heartbeat.stop()
        # Together: a launcher ends the others as soon as one ends with another code than 0.
        part()
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        # It ends this process: after a lost rank no collective can be relied on, `shutdown` neither.
        heartbeat.leave(error)
    finally:
        instruments.close()
        heartbeat.close()
        groups.shutdown()
    if code:
        raise SystemExit(code)


def fit(run: Run, heartbeat: Heartbeat, instruments: Instruments) -> int:
    """Train to the end, or until the run is asked to stop; the exit code. All ranks take part."""
    config = run.config
    with StopRequests(config.run) as requests, Reporter(run) as reporter:
        # The untrained model's losses, to which the curves are compared.
        if run.step == 0:
            heartbeat.at(run.step, "validating")
            validate(run, reporter)
        # A resumed run may have lost its patience already.
        last = run.step if out_of_patience(run) else config.run.max_steps
        for loader_state, batches in read_steps(run, heartbeat, last):
            instruments.before_step(run.step + 1)
            result = take_step(run, batches)
            instruments.after_step(run.step)
            diverged = run.numbers.check_step(run.step, run.engine, loader_state)
            # Only here does the host wait for the device, so seldom reports cost no speed.
            if is_due(run, config.run.log_every):
                losses = report(run.loss, result)
                reporter.train_step(losses)
                run.numbers.check_loss(run.step, losses["loss/total"], loader_state)
            if is_due(run, config.run.eval_every):
                heartbeat.at(run.step, "validating")
                validate(run, reporter)
            # After the validation, whose rank among the best decides which checkpoints stay; and
            # before stopping, so that no step is lost.
            code = stop_code(run, requests, diverged)
            if is_due(run, config.checkpoint.every) or code:
                heartbeat.at(run.step, "saving")
                save(run)
            if code:
                return stop(run, reporter, code)
            if out_of_patience(run):
                break
        heartbeat.at(run.step, "exporting")
        return_to_best(run)
        reporter.finished(export(run))
        return 0 if run.saver.finish() else EXIT_NOT_SAVED


def is_due(run: Run, every: int) -> bool:
    """Whether it is time for something that happens every `every` steps (0: never) and at the end."""
    return run.step == run.config.run.max_steps or (every > 0 and run.step % every == 0)


def read_steps(
    run: Run, heartbeat: Heartbeat, last: int
) -> Iterator[tuple[dict[str, Any], list[Batch]]]:
    """For each step to `last`: the loader's state before the step, and this rank's batches.

    The next step is read when `run.step` says that this one is done.
    """
    # Without a step to do, no worker processes are started.
    if run.step >= last:
        return
    with closing(iter(run.loader)) as batches:  # type: ignore[type-var]
        while run.step < last:
            step = run.step + 1
            heartbeat.at(step, "reading")
            loader_state = run.loader.state_dict()
            with run.phases.on_host("data"):
                local = next_batches(batches, step)
            heartbeat.at(step, "training")
            yield loader_state, local


def next_batches(batches: Iterator[list[Batch]], step: int) -> list[Batch]:
    """This rank's batches of a step.

    Raises:
        UserError: the data has an error. It names rank and step, since other ranks do not see it.
    """
    try:
        return next(batches)
    except UserError as error:
        raise UserError(f"rank {dist.get_rank()}, step {step}: {error}", local=True) from None


def take_step(run: Run, batches: list[Batch]) -> StepResult:
    """Train on the batches of the next step; all ranks take part."""
    config, step = run.config, run.step + 1
    rate = learning_rate(step, config.optimizer, config.schedule, config.run.max_steps)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    result = train_step(run.engine, batches, step, config.run.seed, run.phases)
    run.step = step
    run.counts = run.counts + result.counts
    return result


def validate(run: Run, reporter: Reporter) -> None:
    """Losses on `data.valid`, and the metrics of `validation`; all ranks take part."""
    data, model = run.config.data, run.config.model
    if data.valid is None:
        return
    batches = valid_batches(
        data,
        **example_functions(model, run.config.objective),
        max_length=model.longest_sample,
        rank=parallel_state.get_data_parallel_rank(),
        ranks=parallel_state.get_data_parallel_world_size(),
    )
    losses = report(run.loss, evaluate(run.engine, batches))
    metrics: dict[str, float] = {}
    # An untrained model writes nothing worth scoring, and writes it at full length.
    if run.decoding is not None and run.step > 0:
        metrics = run.decoding.scores(run.module.model)
    run.validated = {"step": run.step, "loss": losses["loss/total"], **metrics}
    reporter.validation({**losses, **metrics})


def save(run: Run) -> None:
    """Write a checkpoint in the background, and remove those that are not kept; all ranks take part."""
    best = record_validation(run)
    with run.phases.on_host("checkpoint"):
        run.saver.save(run.engine, run.step, run.state(), redact(to_json(run.config)), best)


def stop_code(run: Run, requests: StopRequests, diverged: bool) -> int:
    """The exit code if the run must stop after this step, else 0; the same on all ranks."""
    if diverged:
        return EXIT_DIVERGED
    # After the last step there is nothing left to stop.
    return requests.agreed() if run.step < run.config.run.max_steps else 0


def stop(run: Run, reporter: Reporter, code: int) -> int:
    """End the run early, once everything is saved; the exit code. All ranks take part."""
    saved = run.saver.finish()
    failed = code == EXIT_DIVERGED
    reason = "too many steps in a row without a finite gradient" if failed else describe_stop(code)
    reporter.stopped(reason, saved, failed)
    return code if saved else EXIT_NOT_SAVED


def export(run: Run) -> Path:
    """Write a folder that `JanusModel.from_pretrained` reads; all ranks take part.

    It is the folder of the whole model; or the folder of adapters, where these cannot be merged.
    """
    config = run.config
    model_folder, adapter_folder = run.folder / "export", run.folder / "adapter"
    tokenizers = tokenizer_files(config.data)
    origin = run_origin(config, [exported_step(run)])
    weights = full_weights(run.module.model, run.engine.device)
    if dist.get_rank() > 0:
        # Gathering a weight is a collective: the other ranks go through all of them, too.
        deque(weights, maxlen=0)
    elif config.adapter is None:
        write_whole(
            model_folder, weights, config.model, config.optimizer, config.run, tokenizers, origin
        )
    else:
        trained = dict(weights)
        write_adapters(adapter_folder, trained, config.adapter, config.run, origin)
        if config.adapter.kind == "lora":
            write_merged(model_folder, trained, config.adapter, config.run, tokenizers, origin)
    # No rank ends while the first one writes.
    meet()
    # Bottlenecks stay beside the layers of their base, so there is no whole model.
    has_bottlenecks = config.adapter is not None and config.adapter.kind == "bottleneck"
    return adapter_folder if has_bottlenecks else model_folder
