"""An exported model as MLflow's pyfunc: texts in, generations out.

MLflow imports this module where the model is served and calls `_load_pyfunc`: no pickle. It imports
what decoding needs and nothing more, since only that is installed there (`requirements.py`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlflow import MlflowException

from janus_pt.inference.janus_model import JanusModel
from janus_pt.utils.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


class Generator:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, model: JanusModel) -> None:
        self.model = model

    def predict(
        self, data: DataFrame | list[str], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A `Generation` for each text, as a dictionary of its fields.

        Args:
            data: the texts; MLflow makes a table with one column of them.
            params: `mode` and options of `JanusModel.generate`; None stands for the default.

        Raises:
            MlflowException: an option is wrong or a text too long; the server answers with 400.
        """
        texts = data if isinstance(data, list) else data.iloc[:, 0].tolist()
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            generations = self.model.generate(texts, **given)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [asdict(generation) for generation in generations]


def _load_pyfunc(path: str) -> Generator:
    """MLflow's name for the function that loads a model from its folder."""
    return Generator(JanusModel.from_pretrained(path))
