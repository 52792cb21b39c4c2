"""A Hugging Face folder as a model of ours: configuration, weights, and how the original decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.huggingface import CONFIG, check_keys, model_config
from janus_pt.convert.huggingface_files import open_weights, read_json
from janus_pt.convert.huggingface_frames import TOKENIZER_CONFIG, Files, Languages, frames
from janus_pt.convert.huggingface_generation import (
    GENERATION_CONFIG,
    GENERATION_KEYS,
    as_options,
    generation_problems,
)
from janus_pt.convert.huggingface_weights import HuggingFaceWeights
from janus_pt.generate.constraints import forbidden_in_ar
from janus_pt.generate.modes import check_options
from janus_pt.utils.errors import UserError


class Tokens(Protocol):
    """What is asked of the tokenizer."""

    @property
    def unk_token_id(self) -> int | None:
        """The unknown token."""

    @property
    def mask_token_id(self) -> int | None:
        """The mask symbol; None: there is none."""


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model that has been checked, its weights still in their files.

    Attributes:
        options: of mode "ar", with which it decodes as the original was set to.
    """

    config: ModelConfig
    _weights: HuggingFaceWeights
    _names: dict[str, str]
    options: dict[str, Any]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors, one after another."""
        return self._weights.weights(self.config, self._names)


def read_huggingface(
    folder: Path,
    tokens: Tokens,
    token_id: Callable[[str], int | None],
    languages: Languages,
) -> HuggingFaceModel:
    """The model in a folder that `save_pretrained` has written.

    Args:
        tokens, token_id: of the target's tokenizer.

    Raises:
        UserError: the folder is incomplete or damaged, of another architecture, or a setting has no
            counterpart here; the message names the file and the key.
    """
    origin = str(folder / CONFIG)
    values = read_json(folder / CONFIG)
    kind = check_keys(values, origin)
    files = _read_files(folder, values)
    around = frames(files, languages, token_id)
    weights = HuggingFaceWeights.of(open_weights(folder), kind)
    unk = tokens.unk_token_id
    if unk is None:
        raise UserError(f"{folder}: its tokenizer has no token <unk>, which is needed")
    bias = weights.has_output_bias()
    config = model_config(values, unk, tokens.mask_token_id, around, bias, origin)
    barred = set(forbidden_in_ar(config))
    for key, reason in generation_problems(files.generation, barred, config.eos_token_id):
        raise UserError(f"{folder}: {GENERATION_CONFIG}: {key}: {reason}")
    weights.check_size(config)
    config = weights.adapt(config)
    names = weights.map(config)
    options = as_options(files.generation, len(config.target_frame.prefix))
    try:
        check_options("ar", **options)
    except UserError as error:
        raise UserError(f"{folder}: {GENERATION_CONFIG}: {error}") from None
    return HuggingFaceModel(config, weights, names, options)


def _read_files(folder: Path, config: dict[str, Any]) -> Files:
    """The JSON files of a folder."""
    # Older files have all settings in one; where there are two, the newer one counts.
    generation = {key: config[key] for key in GENERATION_KEYS if key in config}
    generation |= read_json(folder / GENERATION_CONFIG, required=False)
    tokenizer_config = read_json(folder / TOKENIZER_CONFIG, required=False)
    return Files(config, tokenizer_config, generation, str(folder))
