"""The model as its users meet it: load, generate, save."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from janus_pt.config.schema import ModelConfig
from janus_pt.export.adapters import load_pretrained
from janus_pt.export.folder import SOURCE_TOKENIZER, TOKENIZER, save_export
from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.generate.modes import check_options
from janus_pt.inference.batching import token_batches
from janus_pt.inference.cpu import PROJECTION, lay_out_for_cpu, quantize_int8
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import pad_sources
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError

BATCH_SIZE = 64
MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Generation:
    """An output for one input.

    Attributes:
        text: the tokens as text.
        tokens: ids without bos and eos.
        score: what outputs were compared by. "ar", "speculative": log-probability, eos included, over (tokens + 1) to
            the power of `length_penalty` (1 in "speculative"); "nar": mean log-probability of the tokens; "bang_nar":
            the same, eos included; "rerank": mean log-probability under P_AR, eos included, mixed with that of "nar"
            as `ar_weight` says.
        token_scores: log-probability of each token, under P_AR in "ar" and "speculative", else under P_NAR.
        decoder_passes: how often the decoder ran for it.
        drafted, accepted: "speculative": tokens that were drafted, and those of them that were kept.
    """

    text: str
    tokens: list[int]
    score: float
    token_scores: list[float]
    decoder_passes: int
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were kept; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


NOTHING = Generation("", [], 0.0, [], 0)
"""Made of an empty input, without asking the model."""


class JanusModel:
    """A trained model with its tokenizer, and the MLflow run that has trained it, if that is known.

    Of two tokenizers the second is that of the sources, which have a vocabulary of their own.
    """

    def __init__(
        self, model: JanusTransformer, *tokenizers: Tokenizer, mlflow_run_id: str | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizers = tokenizers
        self.mlflow_run_id = mlflow_run_id

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the target, and of the source if it has none of its own."""
        return self.tokenizers[0]

    @property
    def source_tokenizer(self) -> Tokenizer:
        """That of the source."""
        return self.tokenizers[-1]

    @property
    def config(self) -> ModelConfig:
        """The model's shape and special ids."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        quantize: Literal["int8"] | None = None,
    ) -> JanusModel:
        """Load an exported model, or adapters and their base, for decoding.

        Args:
            dtype: floating type to compute in; default: as stored.
            device: default: CUDA if there is any, else the CPU; with `quantize` the CPU.
            quantize: "int8": linear layers with int8 weights; faster on a CPU, and not to be saved.

        Raises:
            UserError: the folder is incomplete or damaged; `quantize` does not go with the other arguments.
        """
        export = load_pretrained(directory)
        device = device or ("cuda" if torch.cuda.is_available() and not quantize else "cpu")
        model = export.model().to(device, dtype)
        if quantize and export.adapter is not None:
            raise UserError(
                f"quantize: {directory} holds bottleneck adapters, which have no int8 form; leave it out"
            )
        if quantize:
            quantize_int8(model)
        elif next(model.parameters()).device.type == "cpu":
            lay_out_for_cpu(model)
        return cls(model, *export.tokenizers, mlflow_run_id=export.mlflow_run_id)

    def save_pretrained(self, directory: str | Path) -> None:
        """Export the model; see `janus_pt.export.folder.save_export`.

        Raises:
            UserError: the weights are quantised, or there are bottleneck adapters among them.
        """
        state = {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if not name.startswith(PROJECTION)
        }
        if not all(
            isinstance(tensor, torch.Tensor) and not tensor.is_quantized
            for tensor in state.values()
        ):
            raise UserError(
                "save_pretrained: the weights are quantised; load the model without quantize, and save that"
            )
        if self.model.adapter is not None:
            raise UserError(
                "save_pretrained: bottleneck adapters cannot be merged; copy the folder of the adapters"
            )
        with tempfile.TemporaryDirectory() as folder:
            files = [
                Path(folder, name) for name in (TOKENIZER, SOURCE_TOKENIZER)[: len(self.tokenizers)]
            ]
            for path, tokenizer in zip(files, self.tokenizers, strict=True):
                tokenizer.save(path)
            save_export(directory, state, self.config, files, self.mlflow_run_id)

    def encode(self, text: str | Sequence[int], name: str = "the input") -> list[int]:
        """Token ids of a source text, without bos and eos; ids are taken as they are.

        Raises:
            UserError: they do not fit the model's positions or its vocabulary; the message starts with `name`.
        """
        tokens = (
            self.source_tokenizer.encode(text)
            if isinstance(text, str)
            else [int(token) for token in text]
        )
        length, limit = len(tokens) + 2, self.config.max_positions
        vocab_size = self.config.source_vocab_size or self.config.vocab_size
        if length > limit:
            raise UserError(
                f"{name}: {length} tokens with bos and eos, the model reads at most {limit}; shorten it"
            )
        if not all(0 <= token < vocab_size for token in tokens):
            raise UserError(f"{name}: token ids must be from 0 to {vocab_size - 1}")
        return tokens

    def generate(
        self,
        inputs: Sequence[str | Sequence[int]],
        mode: str = "ar",
        *,
        batch_size: int = BATCH_SIZE,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        **options: Any,
    ) -> list[Generation]:
        """The best outputs for each input, in order; all modes use the same weights.

        Args:
            inputs: texts, or token ids without bos and eos.
            mode: "ar": left to right; "nar": mask-predict; "rerank": mask-predict at several lengths, the best chosen
                by P_AR; "speculative": greedy search, drafted by P_NAR and verified by P_AR; "bang_nar": one pass that
                ends by eos, for models of that objective.
            batch_size, max_batch_tokens: inputs decoded together, and source tokens in them, padding counted; inputs
                are sorted by length first.
            options: those of the mode: `AutoregressiveOptions`, `MaskPredictOptions`, `RerankOptions`,
                `SpeculativeOptions`, `OnePassOptions`; docs/guides/decoding.md has a table.
                With `num_return_sequences` n each input has n outputs one after another, best first.

        Raises:
            UserError: an argument that is wrong, that the mode does not have or that does not go with another; an
                input that is too long.
        """
        chosen = check_options(mode, **options)
        for name, size in (("batch_size", batch_size), ("max_batch_tokens", max_batch_tokens)):
            if size < 1:
                raise UserError(f"{name}: must be at least 1, but is {size}")
        if isinstance(inputs, str):
            raise UserError("inputs: expected a list of texts, got one text; put it in a list")
        sources = [self.encode(item, f"input {index}") for index, item in enumerate(inputs)]
        results = [[NOTHING] * chosen.num_outputs for _ in sources]
        for batch in token_batches(
            [len(source) for source in sources], batch_size, max_batch_tokens
        ):
            for index, result in zip(
                batch, self._decode([sources[i] for i in batch], chosen), strict=True
            ):
                results[index] = result
        return [generation for result in results for generation in result]

    def _decode(self, sources: list[list[int]], options: DecodingOptions) -> list[list[Generation]]:
        """The outputs for each source of a batch, best first."""
        wanted = options.num_outputs
        bos, eos = self.config.bos_token_id, self.config.eos_token_id
        source = pad_sources(
            [np.array([bos, *tokens, eos]) for tokens in sources], self.config.pad_token_id
        )
        found = options.decode(self.model, source.to(self.device))
        per_sentence = (found.passes, found.drafted, found.accepted)
        counts = [x.tolist() if x is not None else [0] * len(sources) for x in per_sentence]
        columns = (
            x[:, :wanted].tolist()
            for x in (found.tokens, found.token_scores, found.lengths, found.scores)
        )
        return [
            [
                Generation(
                    self.tokenizer.decode(tokens[:n]), tokens[:n], score, scores[:n], *numbers
                )
                for tokens, scores, n, score in zip(*hypotheses, strict=True)
            ]
            for hypotheses, *numbers in zip(zip(*columns, strict=True), *counts, strict=True)
        ]
