"""Other engines, on an encoder-decoder of the same size with random weights.

CTranslate2 and Hugging Face's `generate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.ctranslate2 import write_ctranslate2
from janus_pt.model.initialize import draw
from janus_pt.model.meta import full_shapes
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
        """Greedy search of `length` tokens."""
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
    ctranslate2 = require("ctranslate2", "ctranslate2")
    # CTranslate2 reads and writes words: these stand for the ids.
    words = [f"w{token}" for token in range(config.vocab_size)]
    engines: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        # The nearest that it can compute: a decoder without query slots.
        shape = config.model_copy(
            update={
                "ar_stream": "content",
                "source_vocab_size": None,
                "causal_self_attention": False,
                "embedding_projection": False,
            }
        )
        shapes = full_shapes(shape)
        state = {name: draw(name, shapes[name], shape.init_std, seed=1) for name in shapes}
        write_ctranslate2(Path(folder), shape, state, [words])
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
