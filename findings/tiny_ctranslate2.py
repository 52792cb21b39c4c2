"""A random CTranslate2 model of one layer a side, for the scripts beside this file."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerSpec
from ctranslate2.specs.model_spec import index_spec

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"]
SIZE = 16


def make() -> TransformerSpec:
    """Return a specification whose weights are drawn from a fixed seed."""
    spec = TransformerSpec.from_config(1, 2)
    draw = np.random.default_rng(7)
    unset = [name for name, value in spec.variables().items() if value is None]
    for name in unset:
        layer, _, last = name.rpartition("/")
        setattr(index_spec(spec, layer), last, _weight(name, draw))
    spec.register_source_vocabulary(TOKENS)
    spec.register_target_vocabulary(TOKENS)
    spec.config.decoder_start_token = "<s>"
    return spec


def _weight(name: str, draw: np.random.Generator) -> np.ndarray:
    if name.endswith("gamma"):
        return np.ones(SIZE, np.float32)
    if name.endswith("beta"):
        return np.zeros(SIZE, np.float32)
    return draw.standard_normal((_rows(name), SIZE), np.float32) / 2


def _rows(name: str) -> int:
    if "embeddings" in name or "projection" in name:
        return len(TOKENS)
    if "self_attention/linear_0" in name:  # queries, keys and values
        return 3 * SIZE
    if "decoder/layer_0/attention/linear_1" in name:  # keys and values
        return 2 * SIZE
    return SIZE


def save(spec: TransformerSpec, folder: str) -> ctranslate2.Translator:
    """Write `spec` to a new folder and load it."""
    spec.validate()
    Path(folder).mkdir()
    spec.save(folder)
    return ctranslate2.Translator(folder, intra_threads=1)
