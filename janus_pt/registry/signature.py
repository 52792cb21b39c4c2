"""What goes into a pyfunc model and comes out, in MLflow's types."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, get_origin

from janus_pt.inference.cli import options_of_modes

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema

DEFAULT_MODE = "ar"


def make_signature(texts: list[str], generations: list[dict[str, Any]]) -> ModelSignature:
    """The signature of a model that gives `generations` for `texts`.

    Its parameters are `mode` and every option of every mode, without a default of their own: MLflow
    fills defaults in, and an option that is there must be one that the mode has.
    """
    from mlflow.models import infer_signature

    with warnings.catch_warnings():
        # It fears that integers may be missing one day: token ids and counts never are.
        warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer")
        signature = infer_signature(texts, generations)
    signature.params = _parameters()
    return signature


def _parameters() -> ParamSchema:
    from mlflow.types import DataType, ParamSchema, ParamSpec

    specs = [ParamSpec("mode", DataType.string, DEFAULT_MODE)]
    for name, (field, _) in options_of_modes().items():
        specs.append(ParamSpec(name, _type_name(field.annotation), None))
    return ParamSchema(specs)


def _type_name(annotation: Any) -> str:
    """MLflow's name for the type of an option."""
    if annotation is bool:
        return "boolean"
    if annotation is float:
        return "double"
    # What is left are counts, some of which may be None.
    return "string" if get_origin(annotation) is Literal else "long"
