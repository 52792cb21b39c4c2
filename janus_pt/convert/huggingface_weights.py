"""Hugging Face's weights under our names, one tensor at a time.

Both have fairseq's names, except for the tables. Theirs may be stored once or several times, under
any of four names where they are tied, and all names with or without `model.` before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.huggingface import POSITION_ROWS, Kind
from janus_pt.convert.huggingface_files import StoredTensors
from janus_pt.model.initialize import draw
from janus_pt.model.meta import full_shapes
from janus_pt.model.positions import make_table
from janus_pt.utils.errors import UserError

PREFIX = "model."
BIAS = "final_logits_bias"
SHARED_TABLE, OUTPUT_TABLE = "shared.weight", "lm_head.weight"
SOURCE_TABLE, TARGET_TABLE = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
POSITIONS = ("encoder.embed_positions.weight", "decoder.embed_positions.weight")
LENGTH_HEAD = "embed_length.weight"
IGNORED = (
    "encoder.version",
    "decoder.version",
    "encoder.embed_positions.weights",
    "decoder.embed_positions.weights",
)
"""Tensors of older files that the library ignores, too."""
MOST_POSITIONS = 1 << 16
"""Rows that a computed table may have, whatever the weights hold."""
FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""Types of weights. Quantised ones need scales, which our models do not have."""
SAME_SINES = 1e-6
"""Stored sines that differ by more from the computed ones are others."""


@dataclass(frozen=True)
class HuggingFaceWeights:
    """The tensors of a folder.

    Attributes:
        stored: the files.
        names: a tensor's name without `model.` -> its name in the files.
        kind: what model they are of.
    """

    stored: StoredTensors
    names: Mapping[str, str]
    kind: Kind

    @classmethod
    def of(cls, stored: StoredTensors, kind: Kind) -> HuggingFaceWeights:
        """Name the tensors."""
        names = {name.removeprefix(PREFIX): name for name in stored.shapes}
        if len(names) < len(stored.shapes):
            raise UserError(f"{stored.origin}: has tensors with and without {PREFIX!r} before them")
        return cls(stored, names, kind)

    def read(self, name: str) -> Tensor:
        """A tensor by its name without `model.`; `UserError` if it is quantised."""
        tensor = self.stored.read(self.names[name])
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{self.stored.origin}: {self.names[name]} is of type {tensor.dtype}; convert the "
                "model as it was before it was quantised"
            )
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self.stored.shapes[self.names[name]]

    def has_output_bias(self) -> bool:
        """Whether the bias of the scores is there, and is not zero."""
        return BIAS in self.names and bool(self.read(BIAS).any())

    def check_size(self, config: ModelConfig) -> None:
        """Refuse a configuration of a far larger model than the tensors hold.

        First of all: modules of such a size fill the memory, on the meta device, too.
        """
        shapes = self.stored.shapes.values()
        largest = max((size for shape in shapes for size in shape), default=0)
        sizes = {
            "d_model": config.hidden_size,
            "encoder_ffn_dim": config.ffn_hidden_size,
            "vocab_size": max(config.vocab_size, config.source_vocab_size or 0),
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.decoder_layers,
            "max_position_embeddings": config.max_positions,
        }
        for key, size in sizes.items():
            if size > max(largest, MOST_POSITIONS):
                raise UserError(
                    f"{self.stored.origin}: config.json: {key}: {size} is far more than the weights hold"
                )

    def adapt(self, config: ModelConfig) -> ModelConfig:
        """The configuration with learned positions, if other sines than the computed ones are stored.

        The library, too, takes Marian's from the file where they are in it.
        """
        if self.kind.positions != "marian" or not set(POSITIONS) <= self.names.keys():
            return config
        learned = config.model_copy(update={"positions": "learned"})
        self._check_shapes(learned, dict(zip(POSITIONS, POSITIONS, strict=True)))
        table = make_table(config)
        assert table is not None
        computed = table(torch.arange(config.max_positions))
        for name in POSITIONS:
            if (self.read(name) - computed).abs().max() > SAME_SINES:
                return learned
        return config

    def map(self, config: ModelConfig) -> dict[str, str]:
        """Our names -> theirs (the length head has none), after every tensor has been accounted for.

        Raises:
            UserError: a tensor is missing, unexpected, of another shape, or not equal to what it is
                tied to.
        """
        mapped = {}
        missing = []
        for name in full_shapes(config):
            candidates = _candidates(name, config)
            present = [candidate for candidate in candidates if candidate in self.names]
            if present:
                mapped[name] = present[0]
            elif candidates:
                missing.append(candidates[0])
        origin = self.stored.origin
        if missing:
            raise UserError(f"{origin}: {len(missing)} tensors are missing, as {missing[0]}")
        self._check_shapes(config, mapped)
        self._check_ties(config, mapped)
        known = {*mapped.values(), *IGNORED, *_tables(config)}
        if not config.output_bias and BIAS in self.names:
            known.add(BIAS)
        if self.kind.positions == "marian" and config.positions == "marian":
            known.update(POSITIONS)
        unexpected = sorted(self.names.keys() - known)
        if unexpected:
            raise UserError(
                f"{origin}: {len(unexpected)} tensors are not the model's, as "
                f"{self.names[unexpected[0]]}: a part that is not converted would be lost"
            )
        return mapped

    def weights(
        self, config: ModelConfig, mapped: Mapping[str, str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors, of the type of the token table; `mapped` is from `map`."""
        dtype = self.read(mapped["embed_tokens.weight"]).dtype
        for name, shape in full_shapes(config).items():
            if name == LENGTH_HEAD:
                # Nothing of theirs predicts lengths. Equal in all conversions: the seed is 0.
                yield name, draw(name, shape, config.init_std, seed=0).to(dtype)
                continue
            tensor = self.read(mapped[name])[self._unused_rows(name) :]
            yield name, tensor.to(dtype).reshape(shape)

    def _unused_rows(self, name: str) -> int:
        """First rows of a tensor that no position reads."""
        learned = self.kind.positions == "learned"
        return POSITION_ROWS if learned and name in POSITIONS else 0

    def _check_shapes(self, config: ModelConfig, mapped: Mapping[str, str]) -> None:
        shapes = full_shapes(config)
        for name, theirs in mapped.items():
            rows, *others = shapes[name]
            expected = (rows + self._unused_rows(name), *others)
            if theirs == BIAS:
                expected = (1, rows)
            if self.shape(theirs) != expected:
                raise UserError(
                    f"{self.stored.origin}: {self.names[theirs]} is {self.shape(theirs)}, but "
                    f"config.json means {expected}"
                )

    def _check_ties(self, config: ModelConfig, mapped: Mapping[str, str]) -> None:
        """Tables that are stored more than once must be equal: we have one."""
        for name in ("embed_tokens.weight", "embed_source.weight"):
            copies = [theirs for theirs in _candidates(name, config) if theirs in self.names]
            for copy in copies[1:]:
                if not torch.equal(self.read(copy), self.read(mapped[name])):
                    raise UserError(
                        f"{self.stored.origin}: {self.names[copy]} differs from "
                        f"{self.names[mapped[name]]}: such a model is not tied, and cannot be converted"
                    )


def _tables(config: ModelConfig) -> tuple[str, ...]:
    """Names of the token tables."""
    own_source = config.source_vocab_size is not None
    return (
        *_candidates("embed_tokens.weight", config),
        *(_candidates("embed_source.weight", config) if own_source else ()),
    )


def _candidates(name: str, config: ModelConfig) -> tuple[str, ...]:
    """Their names of one of our tensors; none of what they do not have."""
    shared = config.source_vocab_size is None
    if name == LENGTH_HEAD:
        return ()
    if name == "output.bias":
        return (BIAS,)
    if name == "embed_source.weight":
        return (SOURCE_TABLE,)
    if name == "embed_tokens.weight":
        target = (TARGET_TABLE, OUTPUT_TABLE)
        return (SHARED_TABLE, *target, SOURCE_TABLE) if shared else target
    return (name,)
