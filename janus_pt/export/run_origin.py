"""What a run's folder and configuration say of the model it exports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from janus_pt.config.exported import read_export_config
from janus_pt.config.origin import UNKNOWN_ORIGIN, CorpusOrigin, Origin, base_origin
from janus_pt.config.schema import Config
from janus_pt.data.manifest import Manifest, read_manifest
from janus_pt.utils.errors import UserError

METRICS, VALIDATION = "metrics.jsonl", "valid/"
LOSS = "loss/"


def run_origin(config: Config, steps: Sequence[int]) -> Origin:
    """The origin of the weights after `steps` of a run.

    What cannot be read stays unknown: an export must not fail for it.
    """
    records = _records(Path(config.run.output_dir, METRICS), max(steps, default=0))
    losses: dict[str, float] = {}
    evaluation: dict[str, float] = {}
    for record in records:
        found = {name: value for name, value in record.items() if name.startswith(LOSS)}
        losses = found or losses
        found = {
            name.removeprefix(VALIDATION): value
            for name, value in record.items()
            if name.startswith(VALIDATION)
        }
        evaluation = found or evaluation
    began = config.run.init_from
    base = base_origin(began) if began else UNKNOWN_ORIGIN
    return Origin(
        objective=config.objective.name,
        steps=list(steps),
        corpora=[_corpus(source.path) for source in config.data.train],
        losses=losses,
        evaluation=evaluation,
        init_from_sha256=_weights_hash(began),
        base_model=base.base_model,
        license=base.license,
    )


def _records(path: Path, last_step: int) -> list[dict[str, float]]:
    """Numbers of the metrics file to a step; a torn line and nulls are skipped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= last_step:
            records.append({name: value for name, value in record.items() if value is not None})
    return records


def _corpus(url: str) -> CorpusOrigin:
    name = PurePosixPath(url).name
    try:
        manifest: Manifest = read_manifest(url)
    except UserError:
        return CorpusOrigin(name=name)
    return CorpusOrigin(
        name=name,
        fingerprint=manifest.fingerprint,
        samples=manifest.samples,
        tokens=sum(manifest.tokens.values()),
    )


def _weights_hash(folder: str | None) -> str | None:
    try:
        return read_export_config(folder).model_sha256 if folder else None
    except UserError:
        return None
