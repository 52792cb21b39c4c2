"""What an MLflow run says about its origin: its corpora, and the code that made it."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import janus_pt
from janus_pt.data.corpus import Corpus
from janus_pt.utils.redact import redact

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST_CHARACTERS = 36
"""Longer digests are refused by MLflow; the profile has the whole fingerprint."""


def training_input(corpus: Corpus) -> DatasetInput:
    """A corpus as MLflow's dataset: its digest is the start of the manifest's fingerprint."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    manifest = corpus.manifest
    scheme, separator, _ = corpus.url.partition("://")
    profile = {
        "fingerprint": manifest.fingerprint,
        "tokenizer_sha256": manifest.tokenizer_hashes,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
    }
    dataset = Dataset(
        name=PurePosixPath(corpus.url).name,
        digest=manifest.fingerprint[:DIGEST_CHARACTERS],
        source_type=scheme if separator else "local",
        source=json.dumps({"uri": redact(corpus.url)}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def source_tags() -> dict[str, str]:
    """The tags that MLflow's own `start_run` sets: program, user, git revision where there is one."""
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.git_utils import get_git_commit
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    tags = dict(resolve_tags())
    # MLflow looks where the program lies: the command `janus-pt` lies in no repository.
    commit = tags.get(MLFLOW_GIT_COMMIT) or get_git_commit(janus_pt.__file__)
    return {**tags, MLFLOW_GIT_COMMIT: commit} if commit else tags
