#!/usr/bin/env bash
# MLflow replaces the signature that save_model is given by one made from predict's type hint, which has no
# parameters, and predict's params are dropped. An input example with parameters keeps them.
. "$(dirname "$0")/common.sh"
finding mlflow==3.17.2 pandas==3.1.1 <<'PYTHON'
import mlflow
from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel

TEXTS = ["ein Satz"]


class Model(PythonModel):
    def predict(self, model_input: list[str], params=None) -> list[str]:
        return [str(params) for _ in model_input]


def seen(folder, **more):
    """The parameters that reach the saved model, asked with 4 beams."""
    mlflow.pyfunc.save_model(folder, python_model=Model(), pip_requirements=[], **more)
    return mlflow.pyfunc.load_model(folder).predict(TEXTS, params={"beams": 4})[0]


signature = infer_signature(TEXTS, TEXTS, params={"beams": 1})
told, shown = seen("told", signature=signature), seen("shown", input_example=(TEXTS, {"beams": 1}))
print("the signature has:", signature.params)
print("signature=...:    ", told)
print("input_example=...:", shown)
assert told == "{}"
assert shown == "{'beams': 4}"
PYTHON
