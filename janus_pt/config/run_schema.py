"""The parts of the configuration that change no number of the model: checkpoints, validation, tracking, the run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from janus_pt.config.section import Count, Positive, Section


class CheckpointConfig(Section):
    """When a checkpoint is written and which are kept."""

    every: Positive = 1000
    """Steps between two checkpoints; one is always written at the end."""
    keep_last: Positive = 2
    keep_best: Annotated[int, Field(ge=0, strict=False)] = 1
    """Checkpoints with the best validations that are kept as well: the lowest loss, or the highest
    `validation.metric`."""
    verify: Literal["full", "quick"] = "full"
    """Before a checkpoint is loaded: compare hashes, or sizes only. Its files are pickles: `quick` trusts the disk."""


class ValidationConfig(Section):
    """Besides the loss, validation decodes a split of a task and scores it, as `janus-pt evaluate` does."""

    task: str
    """A row of janus_pt/tasks/table.py, as in docs/guides/tasks.md."""
    data: str
    """The task's data folder."""
    split: str = "dev"
    mode: str = "ar"
    """A way to decode: `ar`, `nar`, `rerank`, `speculative`, `bang_nar`, `ctc`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the mode; they override the task's row (docs/guides/decoding.md)."""
    metric: str
    """The value that says which validation is the best: `bleu`, `rougeL`, ..."""
    sentences: Positive | None = None
    """Only the first of the split are decoded."""


class TrackingConfig(Section):
    """MLflow; `metrics.jsonl` in the run folder is written in any case."""

    enabled: bool = True
    uri: str = "sqlite:///runs/mlflow.db"
    experiment: str = "janus_pt"
    system_metrics: bool = True


class RunConfig(Section):
    """The run itself."""

    output_dir: str
    seed: Count = 1
    max_steps: Positive
    log_every: Positive = 10
    eval_every: Count = 0
    """Steps between two validations; 0 validates at the end only."""
    patience: Count = 0
    """Validations in a row that are not the best so far after which the run ends; 0: it goes on to `max_steps`. What is
    exported is then the best checkpoint."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Save and leave, with exit code 11, after so many minutes; under Slurm 5 minutes before its job's end anyway."""
    max_left_out: Positive = 10
    """Steps in a row without a finite gradient, each skipped, after which the run saves and stops."""
    peer_timeout: Annotated[float, Field(ge=1)] = 600.0
    """Seconds after which a rank that hangs ends the job; one that is gone ends it within 30 s
    (docs/guides/cluster.md)."""
    cuda_graphs: bool = False
    """Launch forward pass, losses and backward pass over a micro-batch as two CUDA graphs instead of hundreds of
    kernels: for small micro-batches, for which the host is too slow. Batches are padded to one of few sizes. A
    micro-batch of a new size runs beside the graphs' memory: count activations twice. Never run on a GPU yet."""
    init_from: str | None = None
    """Export folder whose weights the run starts from."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """The device's peak in TFLOP/s, for MFU; by default from a table of accelerators. No MFU is reported of others."""
