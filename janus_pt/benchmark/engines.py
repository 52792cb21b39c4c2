"""Other engines, on an encoder-decoder of the same size with random weights: CTranslate2, Hugging Face `generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from janus_pt.config.schema import ModelConfig

Engine = Callable[[list[list[int]]], Any]


def rivals(config: ModelConfig, length: int, threads: int) -> dict[str, Engine]:
    """What is installed (`pip install 'janus_pt[benchmark]'`), each writing `length` tokens for each source. What is
    not is named on standard output."""
    engines: dict[str, Engine] = {}
    for package, make in (("transformers", _hugging_face), ("ctranslate2", _ctranslate2)):
        if find_spec(package) is None:
            print(f"{package} is not installed: its rows are left out")
        else:
            engines |= make(config, length, threads)
    return engines


def _hugging_face(config: ModelConfig, length: int, threads: int) -> dict[str, Engine]:
    from transformers import MarianConfig, MarianMTModel

    shape = MarianConfig(
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
        forced_eos_token_id=None,
    )
    model = MarianMTModel(shape).eval()

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
    import ctranslate2

    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, config.vocab_size))]
    engines: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        _save_random(config, words, folder)
        for precision in ("float32", "int8"):
            translator = ctranslate2.Translator(
                folder, compute_type=precision, inter_threads=1, intra_threads=threads, device="cpu"
            )

            def generate(ids: list[list[int]], translator: Any = translator) -> Any:
                return translator.translate_batch(
                    [[words[i] for i in row] for row in ids],
                    beam_size=1,
                    min_decoding_length=length,
                    max_decoding_length=length,
                )

            engines[f"CTranslate2 {precision}"] = generate
    return engines


def _save_random(config: ModelConfig, words: list[str], folder: str) -> None:
    """A CTranslate2 model of the shape, its weights drawn at random."""
    from ctranslate2.specs import common_spec, model_spec, transformer_spec

    spec = transformer_spec.TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.num_attention_heads,
        pre_norm=config.pre_layer_norm,
        activation=getattr(common_spec.Activation, config.activation.upper()),
    )
    draw, hidden, ffn = np.random.default_rng(1), config.hidden_size, config.ffn_hidden_size
    rows = {
        "self_attention/linear_0": 3 * hidden,
        "/attention/linear_1": 2 * hidden,
        "ffn/linear_0": ffn,
    }

    def fill(part: Any, name: str, value: Any) -> None:
        attribute = name.rpartition("/")[2]
        if name.endswith("position_encodings/encodings"):
            part.encodings = draw.normal(size=(config.max_positions, hidden)).astype(np.float32)
        elif attribute in ("gamma", "beta"):
            setattr(part, attribute, np.full(hidden, attribute == "gamma", np.float32))
        elif attribute in ("weight", "bias") and ("linear" in name or value is None):
            vocabulary = "embeddings" in name or "projection" in name
            size = (
                config.vocab_size
                if vocabulary
                else next((n for key, n in rows.items() if key in name), hidden)
            )
            columns = ffn if "ffn/linear_1" in name else hidden
            shape = (size,) if attribute == "bias" else (size, columns)
            setattr(part, attribute, draw.normal(scale=0.05, size=shape).astype(np.float32))

    model_spec.visit_spec(spec, fill)
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.optimize()
    spec.save(folder)
