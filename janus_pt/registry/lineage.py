"""Where a registered model comes from, as tags; and the training run that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import janus_pt
from janus_pt.config.exported import ExportConfig
from janus_pt.config.origin import CorpusOrigin, Origin

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput
    from mlflow.entities import Run as MlflowRun


def lineage_tags(
    export: ExportConfig, origin: Origin, run_id: str | None, training_run: MlflowRun | None
) -> dict[str, str]:
    """Tags of a model: hashes of its parts, its training run, that run's corpora and code.

    Args:
        origin: what its model card says.
        run_id: the run that trained it.
        training_run: that run, if the store has it.
    """
    tags = {
        "janus_pt_version": janus_pt.__version__,
        "model_sha256": export.model_sha256,
        "tokenizer_sha256": export.tokenizer_sha256,
        "source_tokenizer_sha256": export.source_tokenizer_sha256,
        "training_run": run_id,
        "init_from_sha256": origin.init_from_sha256,
        "base_model": origin.base_model,
        "license": origin.license,
        "corpora": ", ".join(_corpus(corpus) for corpus in origin.corpora),
    }
    if training_run is not None:
        from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

        tags["training_git_commit"] = training_run.data.tags.get(MLFLOW_GIT_COMMIT)
    return {name: value for name, value in tags.items() if value}


def corpora_of(run: MlflowRun) -> list[DatasetInput]:
    """The corpora that a run has read."""
    return list(run.inputs.dataset_inputs)


def _corpus(corpus: CorpusOrigin) -> str:
    """Name and whole fingerprint."""
    return f"{corpus.name} {corpus.fingerprint or 'unknown'}"
