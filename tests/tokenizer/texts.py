"""Texts on which tokenizers are compared, and tokenizers trained on small text."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

TEXT = (
    "the quick brown fox jumps over lazy dog while seven wizards quietly examine boxes of frozen "
    "jam naïve café Straße Ärger москва привет 日本語 東京 don't I've it's 1984 3.14 e-mail (so) "
)
WORDS = TEXT.split()
ODD = [
    "",
    " ",
    "  two  spaces ",
    "\ttab\nline\r\nend",
    "a\u00a0b\u2003c",
    "\ufb01ne e\u0301 \u2460 \uff21",
    "\U0001f600\U0001f468\u200d\U0001f469",
    "\u0000\u0007",
    "\u2581under\u0120",
    "x" * 300,
]
SPELLED = [
    "<mask>",
    "a <mask> b",
    "a<mask>b",
    "</s><s><pad>",
    "<unk> x",
    "en_XX x",
    ">>fra<< x",
    "▁</s>",
]
"""Texts that spell special tokens."""


@cache
def lines(count: int = 300) -> list[str]:
    """Lines of made-up text with odd characters and spaces here and there; always the same."""
    rng = random.Random(1)
    made = []
    for number in range(count):
        words = rng.choices(WORDS, k=rng.randrange(1, 12))
        line = rng.choice([" ", " ", " ", "  "]).join(words)
        made.append(line + rng.choice(["", ".", " !", "…", f" {number}"]))
    return made


@cache
def bart_json(vocab_size: int = 450, *, add_prefix_space: bool = False) -> bytes:
    """A tokenizer.json of BART's kind: byte-level BPE with BART's ids, `<mask>` last."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 2],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": add_prefix_space,
    }
    return json.dumps(content).encode()


@cache
def spm(size: int, part: int = 1, **settings: str) -> bytes:
    """A SentencePiece model as Marian's and mBART's: it normalises, and spells no characters in bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()[::part]),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def vocabulary(*models: bytes, first: list[str], last: list[str]) -> dict[str, int]:
    """Ids of all pieces, in the order of neither model; a few are missing."""
    processors = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models]
    pieces = {p.id_to_piece(number) for p in processors for number in range(3, p.vocab_size())}
    return {token: number for number, token in enumerate([*first, *sorted(pieces)[:-4], *last])}


def marian_folder(folder: Path, own_vocabularies: bool = False) -> Path:
    """A Marian tokenizer's files: two SentencePiece models, with one vocabulary or two."""
    folder.mkdir(exist_ok=True)
    models = {"source": spm(100), "target": spm(90, part=2)}
    for side, model in models.items():
        (folder / f"{side}.spm").write_bytes(model)
    first, last = ["</s>", "<unk>"], [">>fra<<", ">>deu<<", "<pad>"]
    if not own_vocabularies:
        both = vocabulary(*models.values(), first=first, last=last)
        (folder / "vocab.json").write_text(json.dumps(both))
        return folder
    for side, name in (("source", "vocab.json"), ("target", "target_vocab.json")):
        own = vocabulary(models[side], first=first, last=last)
        (folder / name).write_text(json.dumps(own))
    (folder / "tokenizer_config.json").write_text(json.dumps({"separate_vocabs": True}))
    return folder
