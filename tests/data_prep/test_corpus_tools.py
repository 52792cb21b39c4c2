"""Corpus tools, from files to tokens: no text is lost, every bad line is named."""

from __future__ import annotations

import gzip
import json
import lzma
import os
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from janus_pt.data_prep.blocks import cut_pieces, pack_blocks, split_sentences
from janus_pt.data_prep.encode import Encoder
from janus_pt.data_prep.files import TextFile, format_suffix
from janus_pt.data_prep.inputs import Item, Pair, read_items
from janus_pt.utils.errors import UserError
from tests.support.corpus_text import document, sentence, tokenizer

COMPRESSED = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
PROSE = st.text("ab .\n!", max_size=200) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=100
)


@given(text=PROSE)
def test_sentences_joined_are_the_text(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentences)


def test_where_sentences_end() -> None:
    sentences = [
        'He said: "Go!"',
        "Mr. J. Smith went at 3.5 km/h. then\nturned.",
        "\u201cWhy?\u201d",
        "A heading",
        "new paragraph.",
        "Last",
    ]
    text = "{} {} {}\n{}\n\n{} {}".format(*sentences)
    assert [part.strip() for part in split_sentences(text)] == sentences
    assert split_sentences("\u4f60\u597d\u3002\u518d\u89c1\uff01") == [
        "\u4f60\u597d\u3002",
        "\u518d\u89c1\uff01",
    ]


@given(text=PROSE, size=st.integers(1, 30))
def test_pieces_joined_are_the_text(text: str, size: int) -> None:
    pieces = list(cut_pieces(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


def test_pieces_end_with_sentences() -> None:
    pieces = list(cut_pieces(document(1, 100), 500))
    assert len(pieces) > 5
    assert all(piece.endswith(".") for piece in pieces)


@given(text=PROSE, max_tokens=st.integers(16, 40))
def test_decoded_blocks_are_the_text_but_for_space_at_cuts(text: str, max_tokens: int) -> None:
    blocks = list(pack_blocks(tokenizer(), text, max_tokens))
    assert all(0 < len(block) <= max_tokens for block in blocks)
    place = 0
    for block in blocks:
        decoded = tokenizer().decode(block).strip()
        place += len(text[place:]) - len(text[place:].lstrip())
        assert text.startswith(decoded, place)
        place += len(decoded)
    assert not text[place:].strip()


def test_blocks_hold_as_many_whole_sentences_as_fit() -> None:
    text = " ".join(sentence(i) for i in range(50))
    blocks = [tokenizer().decode(block) for block in pack_blocks(tokenizer(), text, 150)]
    assert " ".join(blocks) == text
    for block, following in pairwise(blocks):
        assert block.endswith(".")
        assert len(tokenizer().encode(block)) <= 150
        assert len(tokenizer().encode(f"{block} {split_sentences(following)[0]}")) > 150


def test_a_block_has_the_tokens_of_its_text() -> None:
    for block in pack_blocks(tokenizer(), document(3), 100):
        assert tokenizer().encode(tokenizer().decode(block)) == block


def read(path: Path, field: str = "text") -> list[str]:
    return [text for item in read_items([(str(path),)], field, "stop") for text in item.texts]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compression_and_formats(tmp_path: Path, suffix: str) -> None:
    documents = ["One.\nTwo \u00e9.", "Three."]
    plain, lines = tmp_path / f"a.txt{suffix}", tmp_path / f"b.jsonl{suffix}"
    plain.write_bytes(COMPRESSED[suffix]("\ufeff\n\nOne.\r\nTwo \u00e9.\n \nThree.".encode()))
    lines.write_bytes(
        COMPRESSED[suffix]("".join(json.dumps({"t": text}) + "\n\n" for text in documents).encode())
    )
    assert read(plain) == documents
    assert read(lines, "t") == documents
    assert (format_suffix(plain), format_suffix(lines)) == (".txt", ".jsonl")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("harm", ["cut", "junk"])
def test_damaged_compression_is_no_end_of_file(tmp_path: Path, suffix: str, harm: str) -> None:
    content = COMPRESSED[suffix](os.urandom(50_000).hex().encode().replace(b"0", b"\n"))
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(content[: len(content) // 2] if harm == "cut" else b"junk" + content)
    with (
        TextFile(file) as lines,
        pytest.raises(UserError, match=f"a.txt{suffix}: damaged or cut short after line"),
    ):
        list(lines)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_several_frames_are_one_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(COMPRESSED[suffix](b"One\n") + COMPRESSED[suffix](b"Two"))
    assert read(file) == ["One\nTwo"]


def test_a_document_without_end_is_read_in_pieces(tmp_path: Path) -> None:
    text = "\n".join(sentence(i) for i in range(20_000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    pieces = read(tmp_path / "a.txt")
    assert len(pieces) > 2
    assert "".join(pieces) == text
    assert pieces == read(tmp_path / "b.jsonl")


BAD_LINES = [
    (b'{"text": "a\xff"}', "invalid UTF-8 at byte 12"),
    (b'{"text": "a"', "broken JSON"),
    (b"[" * 100_000, "broken JSON: nested too deeply"),
    (b'["text"]', "not a JSON object"),
    (b'{"body": "a"}', 'no field "text" .it has: body.'),
    (b'{"text": 3}', "not a string but int"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_stops_with_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "One."}\n' + line + b'\n{"text": "Two."}\n')
    with pytest.raises(UserError, match=f"a.jsonl, line 2: .*{reason}.*--on-error skip"):
        list(read_items([(str(file),)], "text", "stop"))


def test_bad_lines_are_skipped_and_listed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(b'{"text": "Good."}\n' + line + b"\n" for line, _ in BAD_LINES))
    (item,) = read_items([(str(file),)], "text", "skip")
    assert item.texts == ["Good."] * len(BAD_LINES)
    assert [bad.line for bad in item.bad] == list(range(2, 2 * len(BAD_LINES) + 1, 2))
    assert item.position == file.stat().st_size


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_that_is_too_long_is_a_bad_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("janus_pt.data_prep.files.MAX_LINE_BYTES", 10)
    file = tmp_path / "a.txt"
    file.write_bytes(f"0123456789{end}01234567890{end}{'x' * 99}{end}last".encode())
    with TextFile(file) as lines:
        entries = list(lines)
    assert [number for number, _ in entries] == [1, 2, 3, 4]
    assert [line if isinstance(line, str) else None for _, line in entries] == [
        "0123456789",
        None,
        None,
        "last",
    ]


def test_unequal_lengths_name_the_shorter_file(tmp_path: Path) -> None:
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei\nvier\n")
    (tmp_path / "a.en").write_text("one\ntwo\n")
    inputs = [(str(tmp_path / "a.de"), str(tmp_path / "a.en"))]
    with pytest.raises(UserError, match=r"a\.de, line 3: has no partner: .*a\.en ends at line 2"):
        list(read_items(inputs, "text", "stop"))
    (item,) = read_items(inputs, "text", "skip")
    assert [(pair.source, pair.target) for pair in item.pairs] == [("eins", "one"), ("zwei", "two")]
    assert [bad.line for bad in item.bad] == [3, 4]


def test_a_bad_line_takes_its_partner_along(tmp_path: Path) -> None:
    (tmp_path / "a.de").write_bytes(b"eins\n\xff\ndrei\n")
    (tmp_path / "a.en").write_bytes(b"one\ntwo\n\xfe\n")
    (item,) = read_items([(str(tmp_path / "a.de"), str(tmp_path / "a.en"))], "text", "skip")
    assert [pair.source for pair in item.pairs] == ["eins"]
    assert [(Path(bad.file).name, bad.line) for bad in item.bad] == [("a.de", 2), ("a.en", 3)]


def test_pairs_that_do_not_fit_are_dropped_and_listed() -> None:
    long = " ".join(sentence(i) for i in range(20))
    lines = [("things ", "in all"), (long, "many"), ("many", long), ("", "all"), ("all", "  ")]
    pairs = [Pair("a.de", number, *line) for number, line in enumerate(lines, start=1)]
    encoded = Encoder(tokenizer(), 50).encode(Item([], pairs, [], 0))
    assert [[tokenizer().decode(ids) for ids in sample] for sample in encoded.samples()] == [
        ["things", "in all"]
    ]
    count = len(tokenizer().encode(long))
    assert [tuple(bad) for bad in encoded.bad] == [
        ("a.de", 2, f"the source has {count} tokens, more than 50"),
        ("a.de", 3, f"the target has {count} tokens, more than 50"),
        ("a.de", 4, "the source is empty"),
        ("a.de", 5, "the target is empty"),
    ]


def test_an_item_of_bad_lines_alone_is_empty() -> None:
    assert list(Encoder(tokenizer(), 50).encode(Item([], [], [], 0)).samples()) == []
