"""Tokenizers from fairseq's files: ids as fairseq finds them, text -> BPE codes -> dictionary."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from janus_pt.convert.fairseq_tokenizer import from_fairseq, read_dictionary
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from tests.support.models import tokenizer_bytes
from tests.tokenizer.texts import SPELLED, bart_json, lines

Merges = dict[tuple[str, str], int]
TEXTS = [*lines(), "", " ", "  two  spaces ", "\u2460 \U0001f600\U0001f600", *SPELLED]


def learn(texts: list[str], count: int) -> Merges:
    """Merges of Sennrich et al. 2016, figure 1, with ends of words marked as in version 0.2."""
    words = Counter(word for text in texts for word in text.split())
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: Merges = {}
    for rank in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges[best] = rank
        spelled = {word: merged(parts, best) for word, parts in spelled.items()}
    return merges


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    while parts:
        count = 2 if tuple(parts[:2]) == pair else 1
        joined.append("".join(parts[:count]))
        parts = parts[count:]
    return joined


def apply(text: str, merges: Merges) -> list[str]:
    """What `subword-nmt apply-bpe` writes for a line, as tokens."""
    tokens = []
    for word in text.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while True:
            known = [pair for pair in pairwise(parts) if pair in merges]
            if not known:
                break
            parts = merged(parts, min(known, key=merges.__getitem__))
        tokens += [part + "@@" for part in parts[:-1]] + [parts[-1].removesuffix("</w>")]
    return tokens


@pytest.fixture(scope="module")
def merges() -> Merges:
    return learn(lines(), 80)


@pytest.fixture(scope="module")
def folder(merges: Merges, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """codes of both programs, and a dictionary that lacks some of the tokens."""
    folder = tmp_path_factory.mktemp("fairseq")
    pairs = [" ".join(pair) for pair in merges]
    (folder / "codes").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "fast").write_text("".join(f"{pair} {9}\n" for pair in pairs))
    counts = Counter(token for text in lines()[:150] for token in apply(text, merges))
    entries = [f"{token} {count}\n" for token, count in counts.most_common()][:-10]
    (folder / "dict.txt").write_text("".join(entries) + "madeupword0000 0\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return from_fairseq(folder / "dict.txt", folder / "codes")


def test_ids_are_those_of_subword_nmt_and_the_dictionary(
    folder: Path, merges: Merges, tokenizer: Tokenizer
) -> None:
    by_token = {token: number for number, token in enumerate(read_dictionary(folder / "dict.txt"))}
    expected = [[by_token.get(token, 3) for token in apply(text, merges)] for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == expected
    # Both kinds of pieces, and characters that are unknown, are in it.
    found = {token for ids in expected for token in ids}
    assert 3 in found and 0.9 < len(found) / (tokenizer.vocab_size - 4) <= 1
    same = from_fairseq(folder / "dict.txt", folder / "fast")
    assert same.fingerprint == tokenizer.fingerprint


def test_special_tokens_and_text(tokenizer: Tokenizer, folder: Path) -> None:
    ids = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.unk_token_id, tokenizer.mask_token_id] == [0, 1, 2, 3, None]
    text = "the quick brown fox jumps over lazy dog"
    ids = tokenizer.encode(text)
    assert tokenizer.decode([0, *ids, 2]) == text and not tokenizer.keeps_text
    assert tokenizer.decode(ids[:-1]) == text[: -len("dog")] + "do"
    masked = from_fairseq(folder / "dict.txt", folder / "codes", mask=True)
    assert masked.mask_token_id == tokenizer.vocab_size == masked.vocab_size - 1
    assert masked.encode("the <mask> fox") == tokenizer.encode("the <mask> fox")


@pytest.mark.parametrize("complete", [True, False])
def test_the_dictionary_of_gpt2_ids(tmp_path: Path, complete: bool) -> None:
    reference = tokenizers.Tokenizer.from_str(bart_json().decode())
    model = json.loads(bart_json())["model"]
    pieces = [piece for piece in model["vocab"] if piece not in ("<s>", "<pad>", "</s>", "<unk>")]
    order = random.Random(2).sample(range(len(pieces)), len(pieces))
    gpt2 = {piece: number for number, piece in enumerate(pieces)} | {"<|endoftext|>": len(pieces)}
    (tmp_path / "encoder.json").write_text(json.dumps(gpt2))
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    listed = order if complete else order[: len(order) // 2]
    (tmp_path / "dict.txt").write_text(
        "".join(f"{number} 7\n" for number in listed) + "madeupword0000 0\n"
    )
    tokenizer = from_fairseq(
        tmp_path / "dict.txt", tmp_path / "vocab.bpe", tmp_path / "encoder.json", mask=True
    )
    assert tokenizer.file_name == ("tokenizer.json" if complete else "tokenizer.mapped.json")
    assert tokenizer.mask_token_id == len(listed) + 5
    place = {pieces[number]: 4 + number_in_file for number_in_file, number in enumerate(listed)}
    for text in lines():
        expected = [
            place.get(piece, 3) for piece in reference.encode(text, add_special_tokens=False).tokens
        ]
        assert tokenizer.encode(text) == expected
    assert tokenizer.keeps_text == complete


def test_sentencepiece_with_a_dictionary(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(tokenizer_bytes())
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_bytes())
    pieces = processor.encode("the slot writes", out_type=str)
    listed = sorted(set(pieces))
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 5\n" for piece in listed))
    tokenizer = from_fairseq(tmp_path / "dict.txt", tmp_path / "spm.model")
    ids = [4 + listed.index(piece) for piece in pieces]
    assert tokenizer.encode("the slot writes") == ids
    assert tokenizer.decode([*ids, 2]) == "the slot writes"


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("a 1\nb 2\n", ["a", "b"]),
        ("a b 1\r\n\u2028 2\n", ["a b", "\u2028"]),
        ("a 1\n<unk> 5 #fairseq:overwrite\n", ["a", "<unk>"]),
    ],
)
def test_dictionaries(tmp_path: Path, content: str, tokens: list[str]) -> None:
    (tmp_path / "dict.txt").write_bytes(content.encode())
    assert read_dictionary(tmp_path / "dict.txt")[4:] == tokens


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dict.txt", b"a 1\nb\n", r"dict\.txt:2: a line of a fairseq dictionary is a token"),
        ("dict.txt", b"a 1\na 1\n", r"dict\.txt:2: 'a' is there twice"),
        ("dict.txt", b"a 1\n\xff 1\n", r"dict\.txt: not UTF-8 at byte 4"),
        ("dict.txt", None, r"dict\.txt: no such file"),
        ("codes", b"a b\n", r"codes:1: neither codes of subword-nmt"),
        ("codes", b"#version: 0.1\na b\n", r"codes: neither codes of subword-nmt"),
        ("codes", b"#version: 0.2\na b\na b c\n", r"codes:3: neither codes"),
        ("codes", b"", r"codes:1: neither codes"),
        ("codes", b"\n\xff\x00", "neither a SentencePiece model nor"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    (tmp_path / "dict.txt").write_text("a 1\n")
    (tmp_path / "codes").write_text("#version: 0.2\na b\n")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        from_fairseq(tmp_path / "dict.txt", tmp_path / "codes")
