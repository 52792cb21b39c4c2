"""What must be installed where a model is served.

janus_pt itself is not on PyPI, and a later release may decode otherwise: the model takes the
package's code along (MLflow's `code_paths`), and pip installs what decoding imports.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import janus_pt

CODE = Path(janus_pt.__file__).parent
"""The folder of the package."""
PACKAGES = (
    "filelock",
    "numpy",
    "pydantic",
    "safetensors",
    "sentencepiece",
    "tabulate",
    "tokenizers",
    "torch",
    "tqdm",
)
"""What `janus_pt.registry.pyfunc` imports, besides MLflow, which adds itself."""


def pinned_requirements() -> list[str]:
    """`PACKAGES` in the versions that are installed here."""
    # A local version ("2.13.0+cpu") is not on PyPI.
    return [f"{package}=={version(package).partition('+')[0]}" for package in PACKAGES]
