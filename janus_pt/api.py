"""The model as its users meet it: load, generate, save."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from janus_pt.config import ModelConfig, Section
from janus_pt.errors import UserError
from janus_pt.export import load_export, save_export
from janus_pt.generate.autoregressive import AutoregressiveOptions, beam_search
from janus_pt.generate.mask_predict import MaskPredictOptions, mask_predict
from janus_pt.generate.types import Hypotheses
from janus_pt.model.janus import JanusTransformer
from janus_pt.slots import Source, pad_sources
from janus_pt.tokenizer import Tokenizer

Decoder = Callable[[JanusTransformer, Source, Any], Hypotheses]
MODES: dict[str, tuple[type[Section], Decoder]] = {
    "ar": (AutoregressiveOptions, beam_search),
    "nar": (MaskPredictOptions, mask_predict),
}


@dataclass(frozen=True)
class Generation:
    """The best output for one input.

    Attributes:
        text: the tokens as text.
        tokens: ids without bos and eos.
        score: what outputs were compared by. "ar": log-probability, eos included, over (tokens + 1) to the power of
            `length_penalty`; "nar": mean log-probability of the tokens.
        token_scores: log-probability of each token.
        decoder_passes: how often the decoder ran for it.
    """

    text: str
    tokens: list[int]
    score: float
    token_scores: list[float]
    decoder_passes: int


NOTHING = Generation("", [], 0.0, [], 0)
"""Made of an empty input, without asking the model."""


class JanusModel:
    """A trained model with its tokenizer."""

    def __init__(self, model: JanusTransformer, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's shape and special ids."""
        return self.model.config

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
    ) -> JanusModel:
        """Load an exported model.

        Args:
            dtype: floating type to compute in; default: as stored.
            device: default: CUDA if there is any, else the CPU.

        Raises:
            UserError: the folder is incomplete or damaged.
        """
        export = load_export(directory)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(export.model().to(device, dtype), export.tokenizer)

    def save_pretrained(self, directory: str | Path) -> None:
        """Export the model; see `janus_pt.export.save_export`."""
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = Path(folder, "tokenizer.model")
            self.tokenizer.save(tokenizer)
            save_export(directory, self.model.state_dict(), self.config, tokenizer)

    def encode(self, text: str | Sequence[int], name: str = "the input") -> list[int]:
        """Token ids of a text, without bos and eos; ids are taken as they are.

        Raises:
            UserError: they do not fit the model's positions or its vocabulary; the message starts with `name`.
        """
        tokens = self.tokenizer.encode(text) if isinstance(text, str) else [int(token) for token in text]
        length, limit, vocab_size = len(tokens) + 2, self.config.max_positions, self.config.vocab_size
        if length > limit:
            raise UserError(f"{name}: {length} tokens with bos and eos, the model reads at most {limit}; shorten it")
        if not all(0 <= token < vocab_size for token in tokens):
            raise UserError(f"{name}: token ids must be from 0 to {vocab_size - 1}")
        return tokens

    def generate(
        self, inputs: Sequence[str | Sequence[int]], mode: str = "ar", *, batch_size: int = 32, **options: Any
    ) -> list[Generation]:
        """The best output for each input, in order.

        Args:
            inputs: texts, or token ids without bos and eos.
            mode: "ar", left to right, or "nar", mask-predict.
            batch_size: inputs decoded together; they are sorted by length first.
            options: both modes: `max_length` (default 200, or what the model's positions allow) and `min_length`
                (default 1), in tokens; "ar": `num_beams` (default 1: greedy), `length_penalty` (default 1.0);
                "nar": `iterations` (decoder passes, default 4), `length_beam` (lengths tried, default 1).

        Raises:
            UserError: an argument that is wrong, or that the mode does not have; an input that is too long.
        """
        chosen = check_options(mode, batch_size, **options)
        if isinstance(inputs, str):
            raise UserError("inputs: expected a list of texts, got one text; put it in a list")
        sources = [self.encode(item, f"input {index}") for index, item in enumerate(inputs)]
        results = [NOTHING] * len(sources)
        longest_first = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        waiting = [index for index in longest_first if sources[index]]
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            for index, result in zip(batch, self._decode([sources[i] for i in batch], mode, chosen), strict=True):
                results[index] = result
        return results

    def _decode(self, sources: list[list[int]], mode: str, options: Section) -> list[Generation]:
        _, decoder = MODES[mode]
        bos, eos = self.config.bos_token_id, self.config.eos_token_id
        source = pad_sources([np.array([bos, *tokens, eos]) for tokens in sources], self.config.pad_token_id)
        found = decoder(self.model, source.to(next(self.model.parameters()).device), options)
        best = (x[:, 0].tolist() for x in (found.tokens, found.token_scores, found.lengths, found.scores))
        return [
            Generation(self.tokenizer.decode(tokens[:n]), tokens[:n], score, scores[:n], passes)
            for tokens, scores, n, score, passes in zip(*best, found.passes.tolist(), strict=True)
        ]


def check_options(mode: str, batch_size: int, **options: Any) -> Section:
    """The options of a mode; `UserError` for an unknown mode, and for options that it does not have or allow."""
    if mode not in MODES:
        raise UserError(f"mode: there is no {mode!r}; use one of: {', '.join(MODES)}")
    if batch_size < 1:
        raise UserError(f"batch_size: must be at least 1, but is {batch_size}")
    kind, _ = MODES[mode]
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    name = problem["loc"][0]
    if name not in kind.model_fields:
        raise UserError(f'{name}: mode "{mode}" has no such option; it has {", ".join(kind.model_fields)}')
    raise UserError(f"{name}: {problem['msg'].lower()}, but is {problem['input']!r}")
