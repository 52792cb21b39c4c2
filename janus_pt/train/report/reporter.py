"""What a run tells: `metrics.jsonl`, the progress line, MLflow, and the curve at the end. First rank only."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from janus_pt.config.reader import to_json
from janus_pt.train.report.metrics_file import (
    CONTENT_READ,
    MetricsFile,
    ProgressLine,
    flops_per_step,
    peak_flops,
)
from janus_pt.train.report.plots import plot_losses
from janus_pt.train.report.tracking import Tracker
from janus_pt.train.run import Run
from janus_pt.train.schedule import learning_rate
from janus_pt.train.step import SIZES
from janus_pt.utils.extras import is_installed
from janus_pt.utils.files import write_atomically
from janus_pt.utils.redact import redact


class Reporter:
    """Takes the numbers of steps and validations and tells them; on other ranks it does nothing.

    Leaving the context ends the MLflow run as finished, failed or killed.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.first = dist.get_rank() == 0
        self.status = "FINISHED"

    def __enter__(self) -> Reporter:
        if not self.first:
            return self
        run, config = self.run, self.run.config
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / "config.json", redact(to_json(config)))
        self.metrics = MetricsFile(run.folder / "metrics.jsonl")
        self.metrics.truncate_after(run.step if run.step else -1)
        self.progress = ProgressLine(config.run.max_steps, run.step)
        self.tracker = Tracker(config, resumed=run.step > 0) if config.tracking.enabled else None
        dtype = getattr(torch, config.precision.dtype)
        peak = config.run.peak_tflops
        one = peak * 1e12 if peak else peak_flops(run.engine.device, dtype)
        on_cpu = (
            run.engine.device.type == "cpu"
        )  # where the processes of a node share what was measured
        self.peak = one if on_cpu else one * dist.get_world_size()
        self._restart_clock()
        return self

    def _restart_clock(self) -> None:
        self.since, self.counts_then = time.monotonic(), self.run.counts.clone()

    def train_step(self, numbers: dict[str, float]) -> None:
        """Tell a step's numbers, as `step.report` gives them."""
        if not self.first:
            return
        run, config = self.run, self.run.config
        trained = dict(
            zip(SIZES, (run.counts - self.counts_then)[-len(SIZES) :].tolist(), strict=True)
        )
        seconds = time.monotonic() - self.since
        self._restart_clock()
        self._tell(
            {
                **_losses(numbers),
                "lr": learning_rate(
                    run.step, config.optimizer, config.schedule, config.run.max_steps
                ),
                "grad_norm": float(run.engine.get_global_grad_norm()),
                "tokens": float(run.counts[len(run.loss.names) + SIZES.index("target_tokens")]),
                "tokens_per_s": trained["target_tokens"] / seconds,
                "left_out_steps": float(run.numbers.left_out),
                "left_out_samples": run.loader.samples
                - float(run.counts[-len(SIZES) + SIZES.index("sentences")]),
                "mfu": self._flops(trained) / seconds / self.peak,
            }
        )

    def validation(self, numbers: dict[str, float]) -> None:
        """Tell the validation losses after the current step."""
        if self.first:
            self._tell({f"valid/{key}": value for key, value in _losses(numbers).items()})
            self._restart_clock()

    def finished(self, export: Path) -> None:
        """Tell that the model lies in `export`."""
        if not self.first:
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
        """Tell that the run stops before its end, by `why`, and how to go on."""
        self.status = "FAILED" if failed else "KILLED"
        if self.first:
            run = self.run
            told = f"saved after step {run.step}" if saved else "not everything could be saved"
            tqdm.write(f"stopped by {why}: {told}; --resume auto goes on", file=sys.stderr)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.first:
            return
        self.progress.close()
        if self.tracker is not None:
            if kind is not None:
                self.status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
            self.tracker.finish(self.status)

    def _tell(self, record: dict[str, Any]) -> None:
        record = {"step": self.run.step, **record}
        self.metrics.append(record)
        self.progress.update(record)

    def _flops(self, trained: dict[str, float]) -> float:
        sentences = self.run.config.objective.draws * max(trained["sentences"], 1.0)
        return flops_per_step(
            self.run.config.model,
            trained["source_tokens"],
            trained["content_slots"],
            trained["query_slots"],
            trained["predicted_slots"],
            source_length=trained["source_tokens"] / sentences,
            content_length=CONTENT_READ * trained["content_slots"] / sentences,
        )


def _losses(numbers: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in numbers.items() if key not in SIZES}
