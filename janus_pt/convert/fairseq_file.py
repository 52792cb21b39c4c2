"""fairseq's checkpoint files, read without running anything that is in them.

A file is a pickle. Only tensors, plain values and the few classes below are made from it; a file
that names any other is refused before it is made. Both forms are read: `args`, a Namespace with all
options of the training (fairseq 0.x), and `cfg`, a dictionary of sections (1.x).
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.utils.errors import UserError

_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [
    argparse.Namespace,
    # Losses among the training's state. The function's module has another name in numpy 1.
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


@dataclass(frozen=True)
class FairseqCheckpoint:
    """What a converter needs of a checkpoint.

    Attributes:
        settings: options by their names on fairseq's command line.
        weights: the model's tensors under fairseq's names.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]


def read_fairseq(path: Path) -> FairseqCheckpoint:
    """Read a checkpoint of fairseq.

    Raises:
        UserError: the file is missing, damaged, no checkpoint of fairseq, or holds another object,
            whose class is named.
    """
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f'{path}: has no "model": this is no checkpoint of fairseq')
    weights = content["model"]
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: model: {name} is no tensor")
    return FairseqCheckpoint(_settings(path, content), dict(weights))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        # Files older than torch 1.6 are no archives, and cannot be mapped.
        is_archive = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    # Of a damaged file torch raises whatever its bytes happen to mean.
    except Exception as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            reason = f"damaged, or no file of torch ({type(error).__name__})"
            raise UserError(f"{path}: {reason}; copy it again") from None
        reason = f"holds an object of {refused[1]}, which is not loaded: it could run any code"
        raise UserError(f"{path}: {reason}. Save the model without it") from None


def _settings(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """All options that are about the model, in one dictionary."""
    args = content.get("args")
    if args is not None:
        return vars(_namespace(path, "args", args))
    cfg = content.get("cfg")
    if not isinstance(cfg, dict) or "model" not in cfg:
        raise UserError(f'{path}: has neither "args" nor "cfg" with a section "model"')
    model = cfg["model"]
    settings = _flat(model if isinstance(model, dict) else vars(_namespace(path, "cfg", model)))
    criterion = cfg.get("criterion")
    if isinstance(criterion, dict):
        settings["criterion"] = criterion.get("_name")
    return settings


def _namespace(path: Path, key: str, value: Any) -> argparse.Namespace:
    if not isinstance(value, argparse.Namespace):
        raise UserError(f"{path}: {key} is {type(value).__name__}, should be a Namespace")
    return value


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options under their older names: `encoder.layers` is `encoder_layers`."""
    flat: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            inner = _flat(value)
            # The name of the section's class.
            inner.pop("_name", None)
            flat |= {f"{name}_{key}": option for key, option in inner.items()}
        else:
            flat[name] = value
    return flat
