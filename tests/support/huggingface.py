"""Random-weight models made by transformers, in folders as `save_pretrained` writes them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from torch import nn

from janus_pt.convert.huggingface_frames import Languages
from janus_pt.convert.huggingface_model import HuggingFaceModel, read_huggingface
from janus_pt.model.meta import assign_weights, build_on_meta
from janus_pt.model.transformer import JanusTransformer
from tests.tokenizer.texts import bart_json, lines

SIZES: dict[str, Any] = dict(
    vocab_size=61,
    d_model=32,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=30,
)
MARIAN = dict(pad_token_id=60, decoder_start_token_id=60, scale_embedding=True)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BART": ("Bart", {}),
    "BART relu, scaled": ("Bart", dict(activation_function="relu", scale_embedding=True)),
    "mBART": ("MBart", dict(scale_embedding=True, activation_function="gelu_new")),
    "Marian": ("Marian", MARIAN),
    "Marian, two vocabularies": (
        "Marian",
        MARIAN
        | dict(
            activation_function="swish",
            share_encoder_decoder_embeddings=False,
            decoder_vocab_size=73,
        ),
    ),
    "M2M-100": ("M2M100", dict(scale_embedding=True)),
}
"""Name -> transformers' classes, and what their configuration has besides `SIZES`."""
SUFFIX = {"Marian": "MTModel"}
LANGUAGES = {"xx": 58, "yy": 59}
TOKENIZER_CLASSES = {"MBart": "MBartTokenizer", "M2M100": "M2M100Tokenizer"}


@dataclass
class FakeTokens:
    """The ids that a tokenizer of the model would have."""

    unk_token_id: int
    mask_token_id: int | None


def make_huggingface(
    name: str, folder: Path, dtype: torch.dtype = torch.float64, **changes: Any
) -> nn.Module:
    """Save a random model of `MODELS`, with `changes` of its configuration; it is in evaluation mode."""
    kind, more = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**SIZES | more | changes)
    classname = kind + SUFFIX.get(kind, "ForConditionalGeneration")
    model = getattr(transformers, classname)(config)
    _randomise(model)
    model = model.to(dtype).eval()
    if kind == "Bart":
        # Trained models write it by themselves.
        model.generation_config.forced_bos_token_id = 0
    model.save_pretrained(folder)
    if kind in TOKENIZER_CLASSES:
        text = f'{{"tokenizer_class": "{TOKENIZER_CLASSES[kind]}"}}'
        (folder / "tokenizer_config.json").write_text(text)
    loaded: nn.Module = model
    return loaded


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Large norms and biases, so that nothing hides behind zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # Marian's sines stay.
        if "embed_positions" in name and "Marian" in type(model).__name__:
            continue
        if not tensor.is_floating_point() or "embed_scale" in name or name.endswith(".weights"):
            continue
        if "final_logits_bias" in name and "Marian" not in type(model).__name__:
            continue
        is_gain = "norm" in name and name.endswith("weight")
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + float(is_gain))
    _make_it_end(model, generator)


def _make_it_end(model: nn.Module, generator: torch.Generator) -> None:
    """Random models hardly ever end: turn the row of eos towards hidden states of the decoder."""
    table = model.get_output_embeddings().weight
    ids = torch.randint(4, 57, (8, 12), generator=generator)
    model.eval()
    out = model.model(input_ids=ids, decoder_input_ids=ids)
    states = out.last_hidden_state.flatten(0, 1)
    mean = states[::2].mean(0)
    highest = (states @ table.T).amax(1).mean()
    table[model.config.eos_token_id] = mean / (mean @ mean) * highest * 0.9


def read_folder(name: str, folder: Path) -> HuggingFaceModel:
    """The folder of a model of `MODELS`, as the converter reads it."""
    kind, _ = MODELS[name]
    tokens = FakeTokens(1, None) if kind == "Marian" else FakeTokens(3, 57)
    languages = Languages("xx", "yy") if kind in TOKENIZER_CLASSES else Languages()
    return read_huggingface(folder, tokens, LANGUAGES.get, languages)


def as_ours(read: HuggingFaceModel) -> JanusTransformer:
    """The model with the weights of the folder, in evaluation mode."""
    model = build_on_meta(read.config)
    assign_weights(model, dict(read.weights()))
    return model.eval()


def save_bart(folder: Path, max_position_embeddings: int = 90) -> Any:
    """A BART with a byte-level tokenizer of 450 tokens."""
    model = make_huggingface(
        "BART",
        folder,
        torch.float32,
        vocab_size=450,
        max_position_embeddings=max_position_embeddings,
    )
    (folder / "tokenizer.json").write_bytes(bart_json(450))
    names = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    settings = {"tokenizer_class": "BartTokenizer", **names, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def save_marian(folder: Path) -> Any:
    """A Marian model whose two SentencePiece models share a vocabulary."""
    tokens = set()
    for side, size in (("source", 90), ("target", 80)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines()),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        folder.mkdir(exist_ok=True)
        (folder / f"{side}.spm").write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        tokens |= {processor.id_to_piece(i) for i in range(3, processor.vocab_size())}
    vocabulary = ["</s>", "<unk>", *sorted(tokens), "<pad>"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    pad = ids["<pad>"]
    changes = dict(vocab_size=len(ids), pad_token_id=pad, decoder_start_token_id=pad)
    model = make_huggingface("Marian", folder, torch.float32, **changes, max_position_embeddings=90)
    settings = {"tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def save_mbart(folder: Path) -> Any:
    """An mBART with fairseq's order of tokens: four, the pieces, 25 languages, the mask."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=content,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(content.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
    size = 4 + processor.vocab_size() - 3 + 25 + 1
    english = size - 1 - 25 + 3
    model = make_huggingface(
        "mBART", folder, torch.float32, vocab_size=size, max_position_embeddings=90
    )
    settings = {"tokenizer_class": "MBartTokenizer", "src_lang": "de_DE", "tgt_lang": "en_XX"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model.generation_config.decoder_start_token_id = english
    model.generation_config.save_pretrained(folder)
    return model
