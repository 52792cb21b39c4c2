"""The training loop: read, step, report, validate, save, export."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state

from janus_pt.checkpoint.async_save import EXIT_NOT_SAVED
from janus_pt.config.reader import to_json
from janus_pt.config.schema import Config
from janus_pt.data.corpus import tokenizer_files
from janus_pt.data.loader import valid_batches
from janus_pt.export.write_run import write_model
from janus_pt.inference.janus_model import JanusModel
from janus_pt.packing.batch import Batch
from janus_pt.parallel import groups
from janus_pt.parallel.gather import full_weights
from janus_pt.train.early_stopping import out_of_patience, record_validation, return_to_best
from janus_pt.train.report.reporter import Reporter
from janus_pt.train.run import Run, example_functions, prepare
from janus_pt.train.schedule import learning_rate
from janus_pt.train.step import StepResult, evaluate, report, train_step
from janus_pt.train.watch.divergence import EXIT_DIVERGED
from janus_pt.train.watch.heartbeat import Heartbeat, is_peer_failure
from janus_pt.train.watch.stop_requests import StopRequests, describe
from janus_pt.utils.errors import UserError
from janus_pt.utils.redact import redact


def train(config: Config, resume: bool) -> None:
    """Train to `run.max_steps`, validating and saving on the way, and export the model; all ranks take part.

    Raises:
        UserError: something in the config, the data or the checkpoint is wrong.
        SystemExit: the run was asked to stop, could not save, or has lost a rank; with the exit code.
    """
    peers = Heartbeat(config.run.peer_timeout)
    try:
        run = prepare(config, resume, peers)
        try:
            code = fit(run, peers)
        finally:
            run.saver.give_up()
        peers.stop()
        dist.barrier()  # together: a launcher ends the others as soon as one has left with another code than 0
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        peers.leave(error)
    finally:
        peers.stop()
        groups.shutdown()
    if code:
        raise SystemExit(code)


def fit(run: Run, peers: Heartbeat) -> int:
    """Go on with a run to its end, or until it is asked to stop; the exit code. All ranks take part."""
    config = run.config
    with StopRequests(config.run) as requests, Reporter(run) as reporter:
        if run.step == 0:
            validate(run, reporter)
        for result in train_steps(run, peers, until=run.step if out_of_patience(run) else None):
            diverged = run.numbers.step_done(run.step, run.engine, result.before)
            if is_due(run, config.run.log_every):
                told = report(run.loss, result)
                reporter.train_step(told)
                run.numbers.loss_told(run.step, told["loss/total"], result.before)
            if is_due(run, config.run.eval_every):
                validate(run, reporter)
            code = requests.agreed() if run.step < config.run.max_steps else 0
            code = EXIT_DIVERGED if diverged else code
            if is_due(run, config.checkpoint.every) or code:
                save(run)
            if code:
                saved = run.saver.finish()
                failed = code == EXIT_DIVERGED
                why = (
                    "too many steps in a row without a finite gradient"
                    if failed
                    else describe(code)
                )
                reporter.stopped(why, saved, failed)
                return code if saved else EXIT_NOT_SAVED
            if out_of_patience(run):
                break
        return_to_best(run)
        reporter.finished(export(run))
        return 0 if run.saver.finish() else EXIT_NOT_SAVED


def is_due(run: Run, every: int) -> bool:
    """Whether what happens every `every` steps (0: never) and at the end happens now."""
    return run.step == run.config.run.max_steps or (every > 0 and run.step % every == 0)


def train_steps(run: Run, peers: Heartbeat, until: int | None = None) -> Iterator[StepResult]:
    """Train step after step, to `run.max_steps` or `until`; `run` has moved on when a result is given out."""
    config = run.config
    last = config.run.max_steps if until is None else until
    if run.step >= last:
        return
    with closing(iter(run.loader)) as batches:  # type: ignore[type-var]
        while run.step < last:
            step = run.step + 1
            peers.at(step, "reading")
            rate = learning_rate(step, config.optimizer, config.schedule, config.run.max_steps)
            for group in run.engine.optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            before = run.loader.state_dict()
            own = next_batches(batches, step)
            peers.at(step, "training")
            result = train_step(run.engine, own, step, config.run.seed)
            result.before = before
            run.step = step
            run.counts += result.counts
            yield result


def next_batches(batches: Iterator[list[Batch]], step: int) -> list[Batch]:
    """This rank's batches of a step; an error in the data, which the other ranks do not see, names rank and step."""
    try:
        return next(batches)
    except UserError as error:
        raise UserError(f"rank {dist.get_rank()}, step {step}: {error}", local=True) from None


def validate(run: Run, reporter: Reporter) -> None:
    """Loss of every stream on `data.valid`, and after the start the metrics of `validation`; all ranks take part."""
    config = run.config
    if config.data.valid is None:
        return
    batches = valid_batches(
        config.data,
        **example_functions(config),
        max_length=config.model.max_positions,
        rank=parallel_state.get_data_parallel_rank(),
        ranks=parallel_state.get_data_parallel_world_size(),
    )
    losses = report(run.loss, evaluate(run.engine, batches))
    metrics = run.decoding.scores(run.module.model) if run.decoding and run.step else {}
    run.validated = {"step": run.step, "loss": losses["loss/total"], **metrics}
    reporter.validation({**losses, **metrics})


def save(run: Run) -> None:
    """Write a checkpoint, in the background, and remove those that are not kept; all ranks take part."""
    best = record_validation(run)
    run.saver.save(run.engine, run.step, run.state(), redact(to_json(run.config)), best)


def export(run: Run) -> Path:
    """Write a folder that `JanusModel.from_pretrained` reads: the model, or its adapters; all ranks take part.

    Adapters that can be merged are exported as a whole model, too.
    """
    adapter, target = run.config.adapter, run.folder / "export"
    weights = full_weights(run.module.model, run.engine.device)
    if dist.get_rank() == 0:
        tokenizers = tokenizer_files(run.config.data)
        written = write_model(
            run.folder / "adapter" if adapter else target, weights, run.config, tokenizers
        )
        if adapter is not None and adapter.kind == "lora":
            JanusModel.from_pretrained(written, device="cpu").save_pretrained(target)
    else:
        deque(weights, maxlen=0)
    dist.barrier()
    return run.folder / "adapter" if adapter and adapter.kind == "bottleneck" else target
