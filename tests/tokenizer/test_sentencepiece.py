"""The tokenizer: nothing is lost, special pieces cannot be spelt by text, unfit files are refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from janus_pt.data_prep.train_tokenizer import ModelType, sample_sentences, train
from janus_pt.tokenizer import Tokenizer, load_tokenizer, read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.runs import run_script

PANGRAM = "the quick brown fox jumps over the lazy dog while seven wizards quietly examine boxes of frozen jam"
WORDS = PANGRAM.split()
SENTENCES = [" ".join(WORDS[(i * k) % len(WORDS)] for i in range(1, 9)) + "." for k in range(1, 60)]
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60
) | st.text("ab .\n\t")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(SENTENCES, 300)


@pytest.fixture(scope="module")
def path(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer.save(file)
    return file


def test_special_ids_and_size(tokenizer: Tokenizer) -> None:
    ids = [
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ]
    assert [*ids, tokenizer.mask_token_id] == [0, 1, 2, 3, 4]
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.vocab_size == 300


@given(text=TEXT)
def test_round_trip_is_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(first=TEXT.filter(bool), rest=TEXT)
def test_a_continuation_adds_nothing_between(tokenizer: Tokenizer, first: str, rest: str) -> None:
    (continuation,) = tokenizer.encode_continuations([rest])
    assert tokenizer.decode(tokenizer.encode(first) + continuation) == first + rest


@pytest.mark.parametrize("text", ["<mask>", "a <mask> b", "</s><s><pad>", "<0x41>", "<unk>"])
def test_text_cannot_spell_special_pieces(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert min(ids) > 4
    assert tokenizer.decode(ids) == text


def test_decode_drops_specials_and_takes_numpy(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the lazy dog")
    marked = [1, 4, *ids[:2], 4, 3, *ids[2:], 2, 0, 0]
    assert tokenizer.decode(marked) == "the lazy dog"
    assert tokenizer.decode(np.array(marked, dtype=np.uint16)) == "the lazy dog"


def test_words_are_shorter_than_their_bytes(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(SENTENCES[0])) < 0.8 * len(SENTENCES[0])


@given(texts=st.lists(TEXT, max_size=5))
def test_batch_is_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_only_inner_bytes_continue_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x\u00e9\u65e5\U0001f600")
    # Two, three and four bytes in UTF-8: one, two and three of them are inside.
    assert sum(map(tokenizer.continues_character, ids)) == 6
    assert not tokenizer.continues_character(tokenizer.encode("the")[0])


def test_load_save_fingerprint(tokenizer: Tokenizer, path: Path, tmp_path: Path) -> None:
    loaded = load_tokenizer(path)
    assert loaded.encode(SENTENCES[3]) == tokenizer.encode(SENTENCES[3])
    assert loaded.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_training_is_deterministic_and_model_types_differ(tokenizer: Tokenizer) -> None:
    assert train(SENTENCES, 300).fingerprint == tokenizer.fingerprint
    other = train(SENTENCES, 300, "bpe")
    assert other.fingerprint != tokenizer.fingerprint
    assert other.decode(other.encode("  the\n\u00e9 ")) == "  the\n\u00e9 "


def _without_mask() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=45,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a SentencePiece model"),
        (b"not a model" * 50, "neither a SentencePiece model"),
        ("truncated", "neither a SentencePiece model"),
        ("without mask", "no special piece for: mask"),
        ("huge", "the limit is"),
        (None, "no such tokenizer file"),
    ],
)
def test_unfit_files(path: Path, tmp_path: Path, content: bytes | str | None, message: str) -> None:
    file = tmp_path / "unfit.model"
    if content == "truncated":
        content = path.read_bytes()[:-500]
    elif content == "without mask":
        content = _without_mask()
    if content == "huge":
        with file.open("wb") as stream:
            stream.truncate(65 * 2**20)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"unfit.model.*{message}"):
        load_tokenizer(file)


@given(place=st.integers(0, 4000), change=st.integers(1, 255))
def test_a_changed_byte_gives_another_tokenizer_or_our_error(
    tokenizer: Tokenizer, place: int, change: int
) -> None:
    model = bytearray(tokenizer.content)
    model[place % len(model)] ^= change
    try:
        read_tokenizer(bytes(model))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("sentences", "size", "message"),
    [
        (SENTENCES, 20_000, "--vocab-size 20000: this text gives at most [0-9]+ pieces"),
        (SENTENCES, 100, "--vocab-size 100: .* take [0-9]+; ask for more"),
        ([], 400, "no text"),
        (["", ""], 400, "no text"),
    ],
)
def test_what_cannot_be_trained(sentences: list[str], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(sentences, size)


def test_the_sample_is_even_bounded_and_the_same(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("".join(f"Sentence number {i:05d} of the file.\n" for i in range(20_000)))
    sample = list(sample_sentences([str(file)], "text", 60_000))
    assert sample == list(sample_sentences([str(file)], "text", 60_000))
    assert 0.8 < sum(map(len, sample)) / 60_000 < 1.2
    numbers = [int(sentence.split()[2]) for sentence in sample]
    quarters = np.histogram(numbers, bins=4, range=(0, 20_000))[0] / len(numbers)
    assert numbers == sorted(numbers)
    assert (abs(quarters - 0.25) < 0.05).all()
    everything = list(sample_sentences([str(file)], "text", 10**9))
    assert len(everything) == 20_000


def test_long_lines_are_cut_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "line.txt"
    file.write_text("no stop " * 5000)
    sentences = list(sample_sentences([str(file)], "text", 10**9))
    assert "".join(sentences) == "no stop " * 4999 + "no stop"
    assert max(len(sentence.encode()) for sentence in sentences) <= 4000


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    (tmp_path / "b.jsonl").write_text('{"body": "Over the lazy dog."}\n')
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    options = ("--input", *files, "--field", "body", "--vocab-size", "299", "--output")
    command = ("data_prep/train_tokenizer.py", *options)
    assert run_script(monkeypatch, *command, tmp_path / "out.model") == 0
    assert load_tokenizer(tmp_path / "out.model").vocab_size == 299
    assert run_script(monkeypatch, *command, tmp_path / "nowhere" / "out.model") == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model_type", "text", "pieces", "unknown"),
    [
        ("char", "it's", ["▁", "i", "t", "'", "s"], "é"),
        ("word", "HH AH L OW", ["▁HH", "▁AH", "▁L", "▁OW"], "EE"),
    ],
)
def test_characters_or_words_are_the_pieces(
    model_type: ModelType, text: str, pieces: list[str], unknown: str
) -> None:
    tokenizer = train([text] * 3, vocab_size=1000, model_type=model_type)
    ids = tokenizer.encode(text)
    assert [tokenizer.piece(token) for token in ids] == pieces
    assert tokenizer.decode(ids) == text
    # The vocabulary is what there is, and the five special pieces.
    assert tokenizer.vocab_size == 5 + len(set(pieces))
    assert tokenizer.encode(unknown)[-1] == tokenizer.unk_token_id
