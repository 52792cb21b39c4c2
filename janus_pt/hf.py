"""Exports in transformers: `import janus_pt.hf`, then `AutoModelForSeq2SeqLM.from_pretrained(folder)`.

For every model of ours, also for those that no class of transformers computes (query streams, rotary
positions, ...). `generate` is our left-to-right search under the names of transformers; `generate_nar`
writes all tokens at once. Needs the extra `huggingface`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.config.exported import MODEL_TYPE
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.convert.huggingface_generation import as_options, generation_problems
from janus_pt.export.adapters import load_pretrained
from janus_pt.generate.constraints import forbidden_in_ar
from janus_pt.generate.hypotheses import DecodingOptions, Hypotheses
from janus_pt.generate.modes import check_options
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.ar import OBJECTIVE as AR
from janus_pt.objectives.base import MaskedPair
from janus_pt.packing.batch import collate
from janus_pt.packing.example import framed
from janus_pt.packing.slots import pad_sources
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require

# Before the import itself, whose own message names no extra.
require("transformers", "huggingface")

import transformers  # noqa: E402
from transformers.modeling_outputs import Seq2SeqLMOutput  # noqa: E402

IGNORED_LABEL = -100
"""Label of places that no loss counts."""
AR_OBJECTIVE = ObjectiveConfig.model_validate({"name": "ar"})
NO_POSITIONS = np.empty(0, dtype=np.int64)


class JanusConfig(transformers.PretrainedConfig):
    """An export's `config.json`; `model` is `ModelConfig` as a dictionary."""

    model_type = MODEL_TYPE

    def __init__(self, model: Mapping[str, Any] | None = None, **others: Any) -> None:
        """`model` is empty only where transformers asks for a configuration of defaults."""
        self.model = dict(model or {})
        if model:
            shape = ModelConfig.model_validate(self.model)
            others |= {
                "is_encoder_decoder": True,
                "pad_token_id": shape.pad_token_id,
                "bos_token_id": shape.bos_token_id,
                "eos_token_id": shape.eos_token_id,
                "decoder_start_token_id": shape.target_frame.prefix[0],
            }
        super().__init__(**others)


class JanusForConditionalGeneration(transformers.PreTrainedModel):
    """A model of ours with transformers' interface, for ids as its tokenizers give them: with the frame.

    Attributes:
        janus: the model.
        tokenizers: the target's, and the source's if it has its own; empty for a new model.
    """

    config_class = JanusConfig
    main_input_name = "input_ids"

    def __init__(self, config: JanusConfig, janus: JanusTransformer | None = None) -> None:
        """`janus`: the model; by default one with new weights."""
        super().__init__(config)
        shape = ModelConfig.model_validate(config.model)
        self.janus = JanusTransformer(shape) if janus is None else janus
        self.tokenizers: list[Tokenizer] = []

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: Any = "auto", **others: Any
    ) -> JanusForConditionalGeneration:
        """The model of an export folder, or of adapters and their base, in evaluation mode.

        Args:
            dtype: floating type to compute in; "auto": as stored.

        Raises:
            UserError: the folder is incomplete or damaged; an argument has no meaning here.
        """
        # Arguments that transformers passes on by itself, or that change nothing here.
        known = {"config", "adapter_kwargs", "trust_remote_code", "local_files_only"}
        known |= {"revision", "token"}
        unknown = sorted(key for key in others.keys() - known if others[key])
        if unknown:
            raise UserError(f"{unknown[0]}: exports are loaded without it; leave it out")
        export = load_pretrained(folder)
        model = export.model()
        if dtype not in ("auto", None):
            model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        config = JanusConfig(export.config.model_dump(mode="json"))
        loaded = cls(config, model).eval()
        loaded.tokenizers = export.tokenizers
        return loaded

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:
        """Not here: an export has its tokenizer.

        Raises:
            UserError: always.
        """
        raise UserError("save_pretrained: save exports with janus_pt.JanusModel.save_pretrained")

    @property
    def shape(self) -> ModelConfig:
        """Our configuration of the model."""
        return self.janus.config

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of texts, `[batch, source]`, with the model's frame."""
        tokenizer = self.tokenizers[-1]
        rows = [framed(ids, self.shape.source_frame) for ids in tokenizer.encode_batch(texts)]
        source = pad_sources(rows, self.shape.pad_token_id)
        mask = (source.samples >= 0).long()
        return {"input_ids": source.tokens.long(), "attention_mask": mask}

    def decode(self, sequences: Tensor) -> list[str]:
        """Texts of what `generate` and `generate_nar` return."""
        return [self.tokenizers[0].decode(row) for row in sequences.tolist()]

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token table."""
        return self.janus.embed_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> Seq2SeqLMOutput:
        """Scores of P_AR for every token after each of `decoder_input_ids`, and the loss of `labels`.

        Args:
            input_ids, attention_mask: `[batch, source]`, 1 at real tokens.
            decoder_input_ids: `[batch, target]`, the target's prefix first; by default made of `labels`.
            labels: `[batch, target]`, the token after each; -100 where none counts.

        Returns:
            `logits [batch, target, vocab]`, and the mean cross-entropy as `loss`.
        """
        shape = self.shape
        if decoder_input_ids is None:
            if labels is None:
                raise UserError("forward: give decoder_input_ids or labels")
            read = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED_LABEL, shape.pad_token_id)
            start = torch.full_like(labels[:, :1], shape.target_frame.prefix[0])
            decoder_input_ids = torch.cat((start, read), dim=1)
        # Padding on the right is read by nothing that is scored before it.
        examples = [
            AR.example(MaskedPair(source, target, NO_POSITIONS), shape, AR_OBJECTIVE)
            for source, target in zip(
                _rows(input_ids, attention_mask), _with_end(decoder_input_ids, shape), strict=True
            )
        ]
        batch = collate(examples).to(input_ids.device)
        hidden, _ = self.janus(batch.source, batch.slots)
        predicting = hidden[0].index_select(0, batch.predict["ar"])
        logits = self.janus.logits(predicting).view(*decoder_input_ids.shape, -1)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL
            )
        return Seq2SeqLMOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Left to right: `[batch · num_return_sequences, length]`, the prefix first, eos last, padded.

        Args:
            options: transformers' names: `num_beams`, `length_penalty`, `no_repeat_ngram_size`,
                `max_new_tokens`, `max_length`, `min_new_tokens`, `min_length`,
                `num_return_sequences`; `do_sample` with `temperature`, `top_k`, `top_p` and our `seed`.
                Lengths count the prefix and eos, as theirs do.

        Raises:
            UserError: an option is unknown, or has a value that is not possible here.
        """
        return self._decode(input_ids, attention_mask, _ar_options(self.shape, options))

    @torch.inference_mode()
    def generate_nar(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mode: str = "nar",
        **options: Any,
    ) -> Tensor:
        """All tokens at once, in a form as `generate`'s.

        Args:
            mode: a way to decode: "nar", "rerank", "speculative", "auto", "bang_nar", "ctc".
            options: of the mode, under our names (docs/guides/decoding.md).

        Raises:
            UserError: an option is unknown, or has a value that is not possible.
        """
        return self._decode(input_ids, attention_mask, check_options(mode, **options))

    def _decode(
        self, input_ids: Tensor, attention_mask: Tensor | None, options: DecodingOptions
    ) -> Tensor:
        source = pad_sources(_rows(input_ids, attention_mask), self.shape.pad_token_id)
        trains = self.janus.training
        found = options.decode(self.janus.eval(), source.to(self.device))
        self.janus.train(trains)
        return _sequences(found, options.num_outputs, self.shape)


def _rows(input_ids: Tensor, attention_mask: Tensor | None) -> list[np.ndarray[Any, Any]]:
    """The real tokens of each row."""
    ids = input_ids.cpu().numpy().astype(np.int32)
    if attention_mask is None:
        return list(ids)
    return [row[real] for row, real in zip(ids, attention_mask.cpu().numpy() > 0, strict=True)]


def _with_end(decoder_input_ids: Tensor, shape: ModelConfig) -> list[np.ndarray[Any, Any]]:
    """Targets whose contents are the decoder's input: the token behind its last one is not read."""
    ids = decoder_input_ids.cpu().numpy().astype(np.int32)
    return list(np.pad(ids, ((0, 0), (0, 1)), constant_values=shape.eos_token_id))


def _ar_options(shape: ModelConfig, given: Mapping[str, Any]) -> DecodingOptions:
    """Options of mode "ar" from the options of transformers."""
    sampling = {key: given[key] for key in SAMPLING if key in given}
    others = {key: value for key, value in given.items() if key not in SAMPLING}
    barred = set(forbidden_in_ar(shape))
    for key, reason in generation_problems(others, barred, shape.eos_token_id):
        raise UserError(f"{key}: {reason}")
    options = as_options(others, len(shape.target_frame.prefix))
    if "min_length" not in given and "min_new_tokens" not in given:
        # An empty output has to be asked for.
        del options["min_length"]
    return check_options("ar", **options, **sampling)


SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "seed", "num_return_sequences")
"""Options that have the same names and meanings in both."""


def _sequences(found: Hypotheses, count: int, shape: ModelConfig) -> Tensor:
    """Prefix, tokens and eos of the best `count` hypotheses of each source, one after another."""
    tokens = found.tokens[:, :count].flatten(0, 1)
    lengths = found.lengths[:, :count].flatten()
    # A place for eos behind the longest.
    tokens = torch.nn.functional.pad(tokens, (0, 1), value=shape.pad_token_id)
    position = torch.arange(tokens.shape[1], device=tokens.device)
    tokens = tokens.masked_fill(position == lengths[:, None], shape.eos_token_id)
    tokens = tokens.masked_fill(position > lengths[:, None], shape.pad_token_id)
    prefix = tokens.new_tensor(shape.target_frame.prefix).expand(len(tokens), -1)
    return torch.cat((prefix, tokens), dim=1)[
        :, : len(shape.target_frame.prefix) + int(lengths.max()) + 1
    ]


transformers.AutoConfig.register(MODEL_TYPE, JanusConfig, exist_ok=True)
transformers.AutoModelForSeq2SeqLM.register(
    JanusConfig, JanusForConditionalGeneration, exist_ok=True
)
