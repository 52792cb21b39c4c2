"""Other engines, on an encoder-decoder of the same size with random weights.

CTranslate2 and Hugging Face's `generate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from janus_pt.config.schema import ModelConfig
from janus_pt.utils.extras import is_installed, require

Engine = Callable[[list[list[int]]], Any]
"""Decodes sources, each as token ids."""


def other_engines(config: ModelConfig, length: int, threads: int) -> dict[str, Engine]:
    """The engines that are installed (extra `benchmark`); one that is not is named on stdout.

    Args:
        length: tokens that an engine writes for each source.
        threads: CPU threads of an engine.
    """
    engines: dict[str, Engine] = {}
    for package, make_engines in (
        ("transformers", _hugging_face),
        ("ctranslate2", _ctranslate2),
    ):
        if is_installed(package):
            engines |= make_engines(config, length, threads)
        else:
            print(f"{package} is not installed: its rows are skipped")
    return engines


def _hugging_face(config: ModelConfig, length: int, threads: int) -> dict[str, Engine]:
    transformers = require("transformers", "benchmark")
    # Marian is the encoder-decoder of transformers that is nearest to ours.
    shape = transformers.MarianConfig(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_ffn_dim=config.ffn_hidden_size,
        decoder_ffn_dim=config.ffn_hidden_size,
        encoder_attention_heads=config.num_attention_heads,
        decoder_attention_heads=config.num_attention_heads,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.bos_token_id,
        # Else the last token would be eos, and the length one less than asked for.
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(shape).eval()

    def generate(ids: list[list[int]]) -> Any:
        tokens = torch.tensor(ids)
        return model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=1,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
        )

    return {"Hugging Face float32": generate}


def _ctranslate2(config: ModelConfig, length: int, threads: int) -> dict[str, Engine]:
    ctranslate2 = require("ctranslate2", "benchmark")
    # CTranslate2 reads and writes words: these stand for the ids.
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, config.vocab_size))]
    engines: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        _save_random_model(config, words, folder)
        for precision in ("float32", "int8"):
            translator = ctranslate2.Translator(
                folder, compute_type=precision, inter_threads=1, intra_threads=threads, device="cpu"
            )
            engines[f"CTranslate2 {precision}"] = _translate_with(translator, words, length)
    return engines


def _translate_with(translator: Any, words: list[str], length: int) -> Engine:
    def translate(ids: list[list[int]]) -> Any:
        sources = [[words[token] for token in source] for source in ids]
        return translator.translate_batch(
            sources, beam_size=1, min_decoding_length=length, max_decoding_length=length
        )

    return translate


def _save_random_model(config: ModelConfig, words: list[str], folder: str) -> None:
    """Save a CTranslate2 model of the shape, its weights drawn at random."""
    specs = require("ctranslate2.specs", "benchmark")
    # CTranslate2 calls SiLU by its other name.
    name = "SWISH" if config.activation == "silu" else config.activation.upper()
    activation = getattr(specs.common_spec.Activation, name)
    spec = specs.transformer_spec.TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.num_attention_heads,
        pre_norm=config.pre_layer_norm,
        activation=activation,
    )
    rng = np.random.default_rng(1)

    def fill(part: Any, name: str, value: Any) -> None:
        attribute = name.rpartition("/")[2]
        if name.endswith("position_encodings/encodings"):
            shape: tuple[int, ...] = (config.max_positions, config.hidden_size)
            part.encodings = rng.normal(size=shape).astype(np.float32)
        elif attribute == "gamma":
            part.gamma = np.ones(config.hidden_size, np.float32)
        elif attribute == "beta":
            part.beta = np.zeros(config.hidden_size, np.float32)
        # Of other parts only what has no value yet is a weight.
        elif attribute in ("weight", "bias") and ("linear" in name or value is None):
            rows, columns = _weight_shape(config, name)
            shape = (rows,) if attribute == "bias" else (rows, columns)
            weights = rng.normal(scale=0.05, size=shape).astype(np.float32)
            setattr(part, attribute, weights)

    specs.model_spec.visit_spec(spec, fill)
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.optimize()
    spec.save(folder)


def _weight_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """Rows and columns of a CTranslate2 weight by its path in the specification."""
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    columns = ffn if "ffn/linear_1" in name else hidden
    if "embeddings" in name or "projection" in name:
        return config.vocab_size, columns
    # Queries, keys and values are one matrix; in cross-attention keys and values are.
    if "self_attention/linear_0" in name:
        return 3 * hidden, columns
    if "/attention/linear_1" in name:
        return 2 * hidden, columns
    if "ffn/linear_0" in name:
        return ffn, columns
    return hidden, columns
