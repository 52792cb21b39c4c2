"""Reads a folder of golden vectors: models, batches and expected numbers, in the authors' layout."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.fairseq import our_state
from janus_pt.model.initialize import TakeShard, load_weights
from janus_pt.model.layer_factory import PLAIN, Layers
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.batch import Batch, Example, collate
from tests.support.examples import make_example_of

ROOT = Path(
    os.environ.get("JANUS_GOLDENS", Path(__file__).resolve().parents[3] / "shared" / "goldens")
)
SHAPES: dict[str, Any] = (
    json.loads((ROOT / "config.json").read_text()) if (ROOT / "config.json").is_file() else {}
)
needs_goldens = pytest.mark.skipif(
    not SHAPES, reason=f"no golden vectors in {ROOT}: set JANUS_GOLDENS"
)
DENOISING = [name for name, shape in SHAPES.items() if shape["embedding_layer_norm"]]
TRANSLATION = [name for name in SHAPES if name not in DENOISING]


def model_config(shape: dict[str, Any]) -> ModelConfig:
    """Our configuration of a model of the folder, without dropout."""
    ids = {f"{name}_token_id": index for name, index in shape["ids"].items()}
    # Their decoder reads unk where a token is masked.
    ids["mask_token_id"] = ids["unk_token_id"]
    sizes = {name: shape[name] for name in ModelConfig.model_fields if name in shape}
    # Their AR query stands one position before the token that it predicts.
    return ModelConfig(**sizes, **ids, dropout=0.0, ar_position_offset=0)


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors, or their gradients, under our names."""
    state = our_state(weights)
    state["embed_tokens.weight"] = state.pop("encoder.embed_tokens.weight")
    return state


@dataclass
class Golden:
    """One model of the folder with one of its batches."""

    name: str
    edge: bool = False

    def __post_init__(self) -> None:
        self.arrays = np.load(ROOT / f"{self.name}.npz", allow_pickle=False)
        self.config = model_config(SHAPES[self.name])
        self.denoising = self.name in DENOISING

    def model(
        self,
        layers: Layers = PLAIN,
        part: TakeShard = lambda _, whole: whole,
        dtype: torch.dtype = torch.float64,
    ) -> JanusTransformer:
        model = JanusTransformer(self.config, layers).to(dtype)
        load_weights(model, self.weights(), part)
        return model.eval()

    def weights(self) -> dict[str, torch.Tensor]:
        return renamed(load_file(ROOT / f"{self.name}_weights.safetensors"))

    def batch_array(self, key: str) -> np.ndarray[Any, Any]:
        return self.arrays[f"{'edge_' if self.edge else ''}batch/{key}"]

    def expected(self, key: str, precision: str = "fp64") -> torch.Tensor:
        return torch.from_numpy(
            np.asarray(self.arrays[f"{precision}/{'edge_' if self.edge else ''}{key}"])
        )

    def gradients(self) -> dict[str, torch.Tensor]:
        prefix = "fp64/grad/"
        found = {
            k[len(prefix) :]: torch.from_numpy(self.arrays[k])
            for k in self.arrays.files
            if k.startswith(prefix)
        }
        return renamed(found)

    def rows(self, key: str) -> list[np.ndarray[Any, Any]]:
        """The rows of a padded token matrix without their padding."""
        return [row[row != self.config.pad_token_id] for row in self.batch_array(key)]

    def masked(self) -> list[np.ndarray[Any, Any]]:
        words, places = self.batch_array("nar_query_w"), self.batch_array("nar_query_p")
        return [
            place[word != self.config.pad_token_id]
            for word, place in zip(words, places, strict=True)
        ]

    def examples(self) -> list[Example]:
        make = self._denoising_example if self.denoising else self._translation_example
        return [
            make(*parts)
            for parts in zip(
                self.rows("src_tokens"), self.rows("target"), self.masked(), strict=True
            )
        ]

    def batch(self) -> Batch:
        return collate(self.examples())

    def _translation_example(self, source: Any, target: Any, masked: Any) -> Example:
        return self._janus_example(source, target, masked)

    def _janus_example(self, source: Any, target: Any, masked: Any) -> Example:
        return make_example_of(
            "janus",
            source,
            target,
            masked,
            mask_token_id=self.config.mask_token_id,
            position_offset=0,
        )

    def _denoising_example(self, source: Any, target: Any, masked: Any) -> Example:
        """Their AR stream reads eos before bos and predicts bos too: it is the causal half of a longer target."""
        longer = np.concatenate(([self.config.eos_token_id], target))
        causal = self._janus_example(source, longer, masked + 1)
        plain = self._janus_example(source, target, masked)
        added = len(longer) - len(target)
        content = np.concatenate(
            (causal.content[: len(longer) - 1], plain.content[len(target) - 1 :])
        )
        query = np.concatenate((causal.query[: len(longer) - 1], plain.query[len(target) - 1 :]))
        predict = {
            "ar": causal.predict["ar"] - (len(causal.content) - len(content)),
            "nar": plain.predict["nar"] + added,
            "aux": plain.predict["aux"] + 2 * added,
        }
        return Example(source, content, query, causal.targets, predict, len(target))
