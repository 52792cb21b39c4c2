"""Log an exported model to MLflow, and register it.

  janus-pt convert mlflow runs/finetune/export --name summary --alias champion

The registered model takes texts and gives generations; MLflow serves it without this package:

  MLFLOW_TRACKING_URI=sqlite:///runs/mlflow.db mlflow models serve -m models:/summary@champion

It names the run that trained it, that run's corpora and git revision, and the hashes of its parts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from janus_pt.config.exported import read_export_config
from janus_pt.config.origin import CARD, FENCE
from janus_pt.config.run_schema import TrackingConfig
from janus_pt.export.write_run import mlflow_run_id
from janus_pt.inference.janus_model import JanusModel
from janus_pt.registry.evaluations import log_evaluations, read_evaluation
from janus_pt.registry.lineage import corpora_of, lineage_tags
from janus_pt.registry.requirements import CODE, pinned_requirements
from janus_pt.registry.signature import DEFAULT_MODE, make_signature
from janus_pt.train.report.mlflow_store import experiment_id, find_run, open_client, resolve_store
from janus_pt.train.report.tracking import first_line, flatten
from janus_pt.utils.errors import UserError
from janus_pt.utils.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

LOADER = "janus_pt.registry.pyfunc"
UPLOAD_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""A server needs longer for gigabytes than for a training's numbers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mlflow`."""
    tracking = TrackingConfig()
    parser.add_argument("model", type=Path, help="an exported model, or a LoRA adapter: merged")
    parser.add_argument("--name", required=True, help="of the registered model")
    parser.add_argument("--alias", help="of this version, as in models:/NAME@ALIAS")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="reports of janus-pt evaluate task, logged with the model",
    )
    parser.add_argument(
        "--example", default="An example.", help="a text that MLflow shows (default: %(default)s)"
    )
    parser.add_argument("--uri", default=tracking.uri, help="the store (default: %(default)s)")
    parser.add_argument("--experiment", default=tracking.experiment, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Register as the command line asks, and say how to serve."""
    store = Store(args.uri, args.experiment)
    version = register(args.model, args.name, args.alias, store, args.evaluation, args.example)
    place = f"@{args.alias}" if args.alias else f"/{version.version}"
    print(f"models:/{args.name}{place}")


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps it: a tracking URI, and an experiment's name."""

    uri: str
    experiment: str


def register(
    model: str | Path,
    name: str,
    alias: str | None,
    store: Store,
    evaluations: Sequence[Path] = (),
    example: str = "An example.",
) -> ModelVersion:
    """Log an exported model in a run of its own, and register it as a new version of `name`.

    The run is nested in the one that trained the model, where the store has that.

    Args:
        model: folder of an export, or of LoRA adapters, which are merged.
        alias: given to the new version; the version that had it loses it.
        evaluations: reports of `janus-pt evaluate task`.
        example: a text; the model's output for it is the example of the signature.

    Raises:
        UserError: a file is not what it should be, or the store fails.
    """
    # Everything that can be wrong here is found before anything is written there.
    reports = [read_evaluation(path) for path in evaluations]
    loaded = JanusModel.from_pretrained(model, device="cpu")
    with tempfile.TemporaryDirectory() as temporary, _store_errors(store.uri):
        # Adapters name their base by a path, which a server does not have: they are merged.
        export = Path(temporary, "export")
        loaded.save_pretrained(export)
        _check_names(name, alias)
        client = _connect(store)
        # A run may have exported its model before MLflow had taken the run.
        run_id = loaded.mlflow_run_id or mlflow_run_id(Path(model).resolve().parent)
        trained = _training_run(client, run_id)
        tags = lineage_tags(read_export_config(export), loaded.origin, run_id, trained)
        import mlflow

        parent = trained.info.run_id if trained else None
        with mlflow.start_run(run_name=name, parent_run_id=parent, tags=tags) as run:
            if trained:
                client.log_inputs(run.info.run_id, corpora_of(trained))
            logged = _log_model(loaded, export, example, tags)
            log_evaluations(reports, logged.model_id)
        # Last: a version is there with everything that belongs to it, or not at all.
        version = mlflow.register_model(logged.model_uri, name, tags=tags)
        _, _, card = (export / CARD).read_text("utf-8").split(FENCE, 2)
        client.update_model_version(name, version.version, card)
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
        return version


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Say in one message that the store at `uri` fails."""
    try:
        yield
    except Exception as error:
        # SQLAlchemy raises for a file that is no store; what is not the store's stays as it is.
        origin = type(error).__module__.partition(".")[0]
        if origin not in ("mlflow", "sqlalchemy") and not isinstance(error, OSError):
            raise
        raise UserError(f"MLflow at {redact(uri)}: {first_line(error)}") from error


def _connect(store: Store) -> MlflowClient:
    """A client of the store, which the calls of `mlflow` itself use from now on as well."""
    for variable, value in UPLOAD_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    uri, artifacts = resolve_store(store.uri)
    client = open_client(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=experiment_id(client, store.experiment, artifacts))
    return client


def _check_names(name: str, alias: str | None) -> None:
    """Refuse what the registry would refuse, but before it is given anything."""
    from mlflow.utils import validation

    validation._validate_model_name(name)
    if alias is not None:
        validation._validate_model_alias_name(alias)
        validation._validate_model_alias_name_reserved(alias)


def _training_run(client: MlflowClient, run_id: str | None) -> MlflowRun | None:
    """The run that trained the model, if the store has it."""
    found = find_run(client, run_id) if run_id else None
    return found if found and found.info.lifecycle_stage == "active" else None


def _log_model(model: JanusModel, export: Path, example: str, tags: dict[str, str]) -> ModelInfo:
    """Log the folder `export` as a model of the active run."""
    import mlflow

    outputs = [asdict(generation) for generation in model.generate([example])]
    return mlflow.pyfunc.log_model(
        name="model",
        loader_module=LOADER,
        data_path=str(export),
        code_paths=[str(CODE)],
        pip_requirements=pinned_requirements(),
        signature=make_signature([example], outputs),
        input_example=([example], {"mode": DEFAULT_MODE}),
        params=dict(flatten(model.config.model_dump(mode="json"))),
        tags=tags,
    )
