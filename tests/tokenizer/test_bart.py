"""BART's byte-level BPE, from tokenizer.json: the ids and texts of transformers' own tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BartTokenizerFast

from janus_pt.tokenizer import Tokenizer, read_tokenizer
from tests.tokenizer.texts import ODD, SPELLED, bart_json, lines

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("ab .\n\t<mask>")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(bart_json())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> BartTokenizerFast:
    path = tmp_path_factory.mktemp("bart") / "tokenizer.json"
    path.write_bytes(bart_json())
    return BartTokenizerFast.from_pretrained(path.parent)


def test_ids_and_texts_are_those_of_transformers(
    tokenizer: Tokenizer, theirs: BartTokenizerFast
) -> None:
    texts = [*lines(), *ODD]
    ids = tokenizer.encode_batch(texts)
    assert ids == theirs(texts, add_special_tokens=False)["input_ids"]
    for text, of_text in zip(texts, ids, strict=True):
        assert tokenizer.decode(of_text) == text
        assert theirs.decode(of_text, clean_up_tokenization_spaces=False) == text


def test_special_ids(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.unk_token_id] == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == tokenizer.vocab_size - 1 == 449
    assert tokenizer.special_ids == {0, 1, 2, 3, 449}


@pytest.mark.parametrize("text", SPELLED)
def test_text_cannot_spell_special_tokens(
    tokenizer: Tokenizer, theirs: BartTokenizerFast, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == text
    split = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == split


@pytest.mark.parametrize(
    "text", ["a <mask> b", "a<mask>b", "<mask>", " <mask> <mask>c", "a  <mask>"]
)
def test_a_mask_that_is_meant(tokenizer: Tokenizer, theirs: BartTokenizerFast, text: str) -> None:
    assert tokenizer.encode_masked(text) == theirs(text, add_special_tokens=False)["input_ids"]


@given(text=TEXT)
def test_round_trip_is_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.keeps_text and tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)


@given(first=TEXT, rest=TEXT)
def test_a_continuation_adds_nothing_between(tokenizer: Tokenizer, first: str, rest: str) -> None:
    (continuation,) = tokenizer.encode_continuations([rest])
    assert tokenizer.decode(tokenizer.encode(first) + continuation) == first + rest


def test_continuations_have_no_space_before_them_where_a_text_has(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(bart_json(add_prefix_space=True))
    assert not tokenizer.keeps_text
    ids = tokenizer.encode("fox") + tokenizer.encode_continuations(["es"])[0]
    assert tokenizer.decode(ids) == " foxes"


def test_pieces_are_readable_and_know_where_characters_begin(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the fox \U0001f600")
    pieces = [tokenizer.piece(token) for token in ids]
    assert pieces[:2] == ["the", "\u2581fox"] and pieces[-1] == "<0x80>"
    assert [tokenizer.continues_character(token) for token in ids[-4:]] == [False, True, True, True]
