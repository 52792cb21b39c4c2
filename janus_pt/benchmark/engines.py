"""Other engines: CTranslate2 with the weights of our model, and Hugging Face's `generate` on a model of the same size
with random ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.ctranslate2 import unsupported, write_ctranslate2
from janus_pt.utils.extras import is_installed, require

Engine = Callable[[list[list[int]]], list[list[int]]]
"""Decodes sources, each as token ids, to the ids of their outputs."""


def other_engines(
    config: ModelConfig, state: dict[str, Tensor], length: int, threads: int
) -> dict[str, Engine]:
    """The engines that are installed (extra `benchmark`); one that is not is named on stdout.

    Args:
        state: weights of `JanusTransformer(config)`, float32.
        length: tokens that an engine writes for each source.
        threads: CPU threads of an engine.
    """
    engines: dict[str, Engine] = {}
    for package, make_engines in (
        ("transformers", _hugging_face),
        ("ctranslate2", _ctranslate2),
    ):
        if is_installed(package):
            engines |= make_engines(config, state, length, threads)
        else:
            print(f"{package} is not installed: its rows are skipped")
    return engines


def _hugging_face(
    config: ModelConfig, state: dict[str, Tensor], length: int, threads: int
) -> dict[str, Engine]:
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

    def generate(ids: list[list[int]]) -> list[list[int]]:
        """Greedy search of `length` tokens."""
        tokens = torch.tensor(ids)
        outputs = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=1,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
        )
        # Without the start symbol.
        written: list[list[int]] = outputs[:, 1:].tolist()
        return written

    return {"Hugging Face float32": generate}


def _ctranslate2(
    config: ModelConfig, state: dict[str, Tensor], length: int, threads: int
) -> dict[str, Engine]:
    ctranslate2 = require("ctranslate2", "ctranslate2")
    # An engine for ordinary decoders: without query slots.
    shape = config.model_copy(update={"ar_stream": "content"})
    problems = [f"{key}: {reason}" for key, reason in unsupported(shape)]
    if problems:
        print(f"CTranslate2 cannot compute this model, its rows are skipped: {problems[0]}")
        return {}
    # CTranslate2 reads and writes words: these stand for the ids.
    vocabularies = [_words(config.vocab_size)]
    if config.source_vocab_size is not None:
        vocabularies.append(_words(config.source_vocab_size))
    engines: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the dictionary: writing empties it.
        write_ctranslate2(Path(folder), shape, dict(state), vocabularies)
        for precision in ("float32", "int8"):
            translator = ctranslate2.Translator(
                folder, compute_type=precision, inter_threads=1, intra_threads=threads, device="cpu"
            )
            engines[f"CTranslate2 {precision}"] = _translate_with(translator, length)
    return engines


def _words(size: int) -> list[str]:
    return [f"w{token}" for token in range(size)]


def _translate_with(translator: Any, length: int) -> Engine:
    def translate(ids: list[list[int]]) -> list[list[int]]:
        """Greedy search of `length` tokens."""
        sources = [[f"w{token}" for token in source] for source in ids]
        results = translator.translate_batch(
            sources, beam_size=1, min_decoding_length=length, max_decoding_length=length
        )
        return [[int(word[1:]) for word in result.hypotheses[0]] for result in results]

    return translate
