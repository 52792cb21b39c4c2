"""The model as its users meet it: load, generate, save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from janus_pt.config.origin import UNKNOWN_ORIGIN, Origin
from janus_pt.config.schema import ModelConfig
from janus_pt.export.adapters import load_pretrained
from janus_pt.export.folder import save_export
from janus_pt.generate.hypotheses import DecodingOptions, Hypotheses
from janus_pt.generate.modes import check_options
from janus_pt.inference.batching import (
    BATCH_SIZE,
    MAX_BATCH_TOKENS,
    Batching,
    token_batches,
)
from janus_pt.inference.cpu import (
    is_quantized,
    join_projections,
    lay_out_for_cpu,
    quantize_int8,
    stored_state,
)
from janus_pt.inference.generation import EMPTY_GENERATION, Generation
from janus_pt.inference.native.layout import lay_out_natively
from janus_pt.model.attention import kernels_for_decoding
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.example import framed
from janus_pt.packing.slots import pad_sources
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError


class JanusModel:
    """A trained model with its tokenizer.

    Attributes:
        model: in evaluation mode.
        tokenizer: of the target, and of the source if that has none of its own.
        source_tokenizer: of the source.
        mlflow_run_id: the MLflow run that has trained the model, if it is known.
        origin: what else is known of where the model comes from.
    """

    def __init__(
        self,
        model: JanusTransformer,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer | None = None,
        *,
        mlflow_run_id: str | None = None,
        origin: Origin = UNKNOWN_ORIGIN,
    ) -> None:
        """`source_tokenizer`: for sources that have their own."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.source_tokenizer = tokenizer if source_tokenizer is None else source_tokenizer
        self.mlflow_run_id = mlflow_run_id
        self.origin = origin
        self._tokenizers = [tokenizer]
        if source_tokenizer is not None:
            self._tokenizers.append(source_tokenizer)

    @property
    def config(self) -> ModelConfig:
        """The model's shape and special ids."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        quantize: Literal["int8"] | None = None,
        native: bool = False,
    ) -> JanusModel:
        """Load an exported model, or adapters and their base, for decoding.

        Args:
            dtype: floating type to compute in; default: as stored.
            device: default: CUDA if there is any, else the CPU; with `quantize` or `native` the CPU.
            quantize: "int8": linear layers with int8 weights. Faster on a CPU; such a model cannot
                be saved.
            native: passes in C++, compiled for this CPU at their first use by the compiler that is there: much
                faster. For models with the usual layers, in float32 or with `quantize`. Such a model cannot be
                saved.

        Raises:
            UserError: the folder is incomplete or damaged; `quantize` or `native` does not go with the
                other arguments, or with the model.
        """
        export = load_pretrained(directory)
        if device is None:
            device = "cuda" if torch.cuda.is_available() and not (quantize or native) else "cpu"
        model = export.model().to(device, dtype)
        if quantize and export.adapter is not None:
            raise UserError(
                f"quantize: {directory} holds bottleneck adapters, which have no int8 form; "
                "leave it out"
            )
        if native:
            lay_out_natively(model, int8=quantize is not None)
        elif quantize:
            quantize_int8(model)
        elif next(model.parameters()).device.type == "cpu":
            lay_out_for_cpu(model)
        else:
            join_projections(model)
        run_id, origin = export.mlflow_run_id, export.origin
        return cls(model, *export.tokenizers, mlflow_run_id=run_id, origin=origin)

    def save_pretrained(self, directory: str | Path) -> None:
        """Export the model; see `janus_pt.export.folder.save_export`.

        Raises:
            UserError: the weights are quantised or laid out for native passes, or there are bottleneck
                adapters among them.
        """
        if is_quantized(self.model):
            raise UserError(
                "save_pretrained: the weights are quantised; "
                "load the model without quantize, and save that"
            )
        if self.model.native is not None:
            raise UserError(
                "save_pretrained: the weights are laid out for native passes; "
                "load the model without native, and save that"
            )
        if self.model.adapter is not None:
            raise UserError(
                "save_pretrained: bottleneck adapters cannot be merged; "
                "copy the folder of the adapters"
            )
        run_id, origin = self.mlflow_run_id, self.origin
        state = stored_state(self.model)
        save_export(directory, state, self.config, self._tokenizers, run_id, origin)

    def encode(self, text: str | Sequence[int], name: str = "the input") -> list[int]:
        """Token ids of a source text, without bos and eos; ids are taken as they are.

        Raises:
            UserError: they do not fit the model's positions or its vocabulary; the message starts
                with `name`.
        """
        ids = self.source_tokenizer.encode(text) if isinstance(text, str) else text
        # Users may pass numpy's integers, which do not compare or serialise like Python's.
        tokens = [int(token) for token in ids]
        length = len(tokens) + self.config.source_frame.size
        limit = self.config.max_positions
        if length > limit:
            raise UserError(
                f"{name}: {length} tokens with the special ones, the model reads at most {limit}; "
                "shorten it"
            )
        vocab_size = self.config.source_vocab_size or self.config.vocab_size
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
            mode: "ar": left to right; "nar": mask-predict; "rerank": mask-predict at several
                lengths, the best chosen by P_AR; "speculative": greedy search, drafted by P_NAR and
                verified by P_AR; "auto": greedy search, by whichever of the two ways has been
                faster; "bang_nar", "ctc": one pass, for models of that objective.
            batch_size, max_batch_tokens: inputs decoded together, and source tokens in them,
                padding counted; inputs are sorted by length first.
            options: options of the mode: `AutoregressiveOptions`, `MaskPredictOptions`,
                `RerankOptions`, `SpeculativeOptions`, `AutoOptions`, `OnePassOptions`,
                `CTCOptions`; docs/guides/decoding.md has
                a table. With `num_return_sequences` n each input has n outputs one after another,
                best first.

        Raises:
            UserError: an argument is wrong, the mode does not have it, or it does not go with
                another; an input is too long.
        """
        checked_options = check_options(mode, **options)
        batching = Batching(batch_size, max_batch_tokens)
        # A text is a sequence of strings, too: its characters would be decoded one by one.
        if isinstance(inputs, str):
            raise UserError("inputs: expected a list of texts, got one text; put it in a list")
        sources = [self.encode(item, f"input {index}") for index, item in enumerate(inputs)]
        return self.generate_from_ids(sources, checked_options, batching)

    def generate_from_ids(
        self, sources: Sequence[list[int]], options: DecodingOptions, batching: Batching
    ) -> list[Generation]:
        """`generate` for ids that `encode` has checked, and options that `check_options` has.

        Portions of a long text come here one by one: nothing is checked twice.
        """
        outputs = [[EMPTY_GENERATION] * options.num_outputs for _ in sources]
        lengths = [len(source) for source in sources]
        for batch in token_batches(lengths, batching):
            generations = self._decode([sources[index] for index in batch], options)
            for index, generation in zip(batch, generations, strict=True):
                outputs[index] = generation
        return [generation for of_source in outputs for generation in of_source]

    def _decode(
        self, sources: Sequence[list[int]], options: DecodingOptions
    ) -> list[list[Generation]]:
        """The outputs for each source of a batch, best first."""
        rows = [framed(tokens, self.config.source_frame) for tokens in sources]
        batch = pad_sources(rows, self.config.pad_token_id)
        with kernels_for_decoding(self.device):
            hypotheses = options.decode(self.model, batch.to(self.device))
        return self._generations(hypotheses, options.num_outputs)

    def _generations(self, hypotheses: Hypotheses, num_outputs: int) -> list[list[Generation]]:
        """The first `num_outputs` hypotheses of each source as text."""
        # One copy to the host for each tensor of the batch: element by element each would wait.
        tokens = hypotheses.tokens[:, :num_outputs].tolist()
        token_scores = hypotheses.token_scores[:, :num_outputs].tolist()
        lengths = hypotheses.lengths[:, :num_outputs].tolist()
        scores = hypotheses.scores[:, :num_outputs].tolist()
        passes = hypotheses.passes.tolist()
        nothing = [0] * len(passes)
        drafted = nothing if hypotheses.drafted is None else hypotheses.drafted.tolist()
        accepted = nothing if hypotheses.accepted is None else hypotheses.accepted.tolist()
        outputs = []
        for row in range(len(passes)):
            of_source = []
            for candidate, length in enumerate(lengths[row]):
                ids = tokens[row][candidate][:length]
                generation = Generation(
                    text=self.tokenizer.decode(ids),
                    tokens=ids,
                    score=scores[row][candidate],
                    token_scores=token_scores[row][candidate][:length],
                    decoder_passes=passes[row],
                    drafted=drafted[row],
                    accepted=accepted[row],
                )
                of_source.append(generation)
            outputs.append(of_source)
        return outputs
