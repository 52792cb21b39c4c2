"""What a run can record of itself: a trace of some steps, and the history of a GPU's memory."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.profiler import ProfilerActivity, profile

from janus_pt.utils.errors import UserError

FOLDER = "profile"
"""In the run folder."""
MEMORY_EVENTS = 200_000
"""Allocations and releases that the history keeps, the newest: a step of a large model has thousands."""
MEMORY_STEPS = 3
"""Steps after which the history is written, where no steps are traced."""


class Instruments:
    """Records what was asked for, on the first rank of each pipeline stage; other ranks are like it.

    Args:
        traced: steps to trace, an empty range for none.
        memory: record the history of the device's memory from the start to the end of these steps.
        run_folder: where the files go, into `profile/`.
    """

    def __init__(self, traced: range, memory: bool, run_folder: Path) -> None:
        self._traced = traced
        self._memory = memory
        self._folder = run_folder / FOLDER
        self._profile: profile | None = None
        self._is_recording = False
        self._steps_seen = 0

    def start(self) -> None:
        """Begin, as soon as the process groups exist and before the model is built.

        Raises:
            UserError: memory was asked for, and there is no GPU.
        """
        if self._memory and not torch.cuda.is_available():
            raise UserError(
                "--memory-snapshot records the memory of a GPU, and this run is on a CPU: leave it "
                "out (the dry run prints what a step needs)"
            )
        # One rank a stage: a thousand files of one step say no more than one.
        is_chosen = (
            parallel_state.get_data_parallel_rank() == 0
            and parallel_state.get_tensor_model_parallel_rank() == 0
        )
        if not is_chosen:
            self._traced, self._memory = range(0), False
        if self._memory:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
            self._is_recording = True

    def before_step(self, step: int) -> None:
        """Begin the trace if it is this step's turn."""
        if self._profile is None and step in self._traced:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after_step(self, step: int) -> None:
        """Write what is complete with this step."""
        self._steps_seen += 1
        if self._profile is not None and step == self._traced[-1]:
            self._write_trace()
        done = step >= self._traced[-1] if self._traced else self._steps_seen == MEMORY_STEPS
        if done:
            self._write_memory()

    def close(self) -> None:
        """Write what has been recorded, however the run ends: lack of memory is what it is for."""
        if self._profile is not None:
            self._write_trace()
        self._write_memory()

    def _write_trace(self) -> None:
        assert self._profile is not None
        recorded, self._profile = self._profile, None
        recorded.stop()
        path = self._path(f"trace_{self._traced[0]}-{self._traced[-1]}", "json.gz")
        recorded.export_chrome_trace(str(path))
        self._traced = range(0)
        print(f"trace: {path} (open it with https://ui.perfetto.dev)", flush=True)

    def _write_memory(self) -> None:
        if not self._is_recording:
            return
        self._is_recording = False
        path = self._path("memory", "pickle")
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
        print(f"memory: {path} (open it with https://pytorch.org/memory_viz)", flush=True)

    def _path(self, name: str, ending: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{name}_rank_{dist.get_rank()}.{ending}"
