"""Reports on a run: `metrics.jsonl`, the progress line, MLflow, and the curve at the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from tqdm import tqdm

from janus_pt.config.reader import to_json
from janus_pt.planning.flops import flops_per_step
from janus_pt.planning.peaks import peak_flops
from janus_pt.train.counts import Sizes, workload
from janus_pt.train.report.metrics_file import MetricsFile
from janus_pt.train.report.plots import plot_losses
from janus_pt.train.report.progress import ProgressLine
from janus_pt.train.report.ranks import compare_ranks
from janus_pt.train.report.tracking import Tracker
from janus_pt.train.schedule import learning_rate
from janus_pt.train.state import Run
from janus_pt.utils.extras import is_installed
from janus_pt.utils.files import write_atomically
from janus_pt.utils.redact import redact


class Reporter:
    """Takes the numbers of steps and validations and reports them; on other ranks it does nothing.

    Leaving the context ends the MLflow run as finished, failed or killed.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.is_first = dist.get_rank() == 0
        self.status = "FINISHED"

    def __enter__(self) -> Reporter:
        if not self.is_first:
            return self
        run, config = self.run, self.run.config
        config_json = redact(to_json(config))
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / "config.json", config_json)
        self.metrics = MetricsFile(run.folder / "metrics.jsonl")
        # Before the tracker starts, which sends what the file has. A new run drops all records of
        # an older one, also the validation before the first step.
        self.metrics.truncate_after(run.step if run.step > 0 else -1)
        self.progress = ProgressLine(config.run.max_steps, run.step)
        self.tracker: Tracker | None = None
        if config.tracking.enabled:
            resumed = run.step > 0
            self.tracker = Tracker(config.run, config.tracking, config_json, resumed)
            self.tracker.log_corpora(run.loader.corpora)
        self.peak = self._job_peak_flops()
        self._restart_clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.is_first:
            return
        self.progress.close()
        if self.tracker is not None:
            if kind is not None:
                self.status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
            self.tracker.finish(self.status)

    def train_step(self, numbers: dict[str, float]) -> None:
        """Report a step's numbers, as `step.report` gives them; all ranks take part."""
        run, config = self.run, self.run.config
        # The device is done with the steps: `report` has read their losses.
        times = run.phases.take()
        ranks = compare_ranks(times, run.engine.device)
        if not self.is_first:
            return
        trained = (run.counts - self.counts_before).sizes()
        total = run.counts.sizes()
        seconds = time.monotonic() - self.started
        self._restart_clock()
        rate = learning_rate(run.step, config.optimizer, config.schedule, config.run.max_steps)
        self._write(
            {
                **numbers,
                "lr": rate,
                "grad_norm": float(run.engine.get_global_grad_norm()),
                "tokens": total.target_tokens,
                "tokens_per_s": trained.target_tokens / seconds,
                "left_out_steps": float(run.numbers.skipped),
                # The loader counts what it has drawn, the counts what reached a step.
                "left_out_samples": run.loader.samples - total.sentences,
                **(
                    {} if self.peak is None else {"mfu": self._flops(trained) / seconds / self.peak}
                ),
                **times.metrics(),
                **ranks,
            }
        )

    def validation(self, numbers: dict[str, float]) -> None:
        """Report the validation losses after the current step."""
        if self.is_first:
            self._write({f"valid/{key}": value for key, value in numbers.items()})
            # The time of a validation must not count as time of training.
            self._restart_clock()

    def finished(self, export: Path) -> None:
        """Report that the model is in `export`."""
        if not self.is_first:
            return
        curve = self.run.folder / "loss.png"
        # The picture is an extra: a run that has trained to its end must not fail over it.
        has_curve = is_installed("matplotlib")
        if has_curve:
            plot_losses(self.metrics.path, curve)
        if self.tracker is not None:
            if has_curve:
                self.tracker.log_artifact(curve)
            self.tracker.log_artifact(export, "export")
        self.progress.close()
        missing = "none: pip install 'janus_pt[plots]'"
        print(f"model: {export}\ncurve: {curve if has_curve else missing}")
        print(f"metrics: {self.metrics.path}")

    def stopped(self, why: str, saved: bool, failed: bool) -> None:
        """Report that the run stops before its end, by `why`, and how to go on."""
        self.status = "FAILED" if failed else "KILLED"
        if self.is_first:
            saving = "not everything could be saved"
            if saved:
                saving = f"saved after step {self.run.step}"
            tqdm.write(f"stopped by {why}: {saving}; --resume auto goes on", file=sys.stderr)

    def _write(self, record: dict[str, float]) -> None:
        record = {"step": self.run.step, **record}
        self.metrics.append(record)
        self.progress.update(record)

    def _restart_clock(self) -> None:
        self.started = time.monotonic()
        self.counts_before = self.run.counts

    def _job_peak_flops(self) -> float | None:
        """Operations per second that the devices of the whole job can do at best, if that is known."""
        config, device = self.run.config, self.run.engine.device
        precision, given = config.precision, config.run.peak_tflops
        tf32 = precision.float32_matmul == "tf32"
        known = peak_flops(device, getattr(torch, precision.dtype), tf32)
        peak = given * 1e12 if given else known
        # The processes of a node share its CPU.
        sharing = device.type == "cpu"
        return peak if peak is None or sharing else peak * dist.get_world_size()

    def _flops(self, trained: Sizes) -> float:
        """Operations of the steps since the last report."""
        config = self.run.config
        return flops_per_step(config.model, workload(trained, config.objective.draws))
