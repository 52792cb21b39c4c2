"""The special tokens around texts, by tokenizer class, against what transformers' classes document."""

from __future__ import annotations

from typing import Any

import pytest

from janus_pt.config.schema import Frame
from janus_pt.convert.huggingface_frames import Files, Languages, frames
from janus_pt.utils.errors import UserError

IDS = {"de_DE": 50, "en_XX": 51, "__fr__": 52}
BART = {"model_type": "bart", "bos_token_id": 0, "eos_token_id": 2}
MBART = {"model_type": "mbart", "bos_token_id": 0, "eos_token_id": 2}
M2M = {"model_type": "m2m_100", "bos_token_id": 0, "eos_token_id": 2}
GERMAN_ENGLISH = Languages("de_DE", "en_XX")


def found(
    config: dict[str, Any],
    generation: dict[str, Any],
    tokenizer: dict[str, Any],
    languages: Languages = GERMAN_ENGLISH,
) -> tuple[Frame, Frame]:
    return frames(Files(config, tokenizer, generation, "folder"), languages, IDS.get)


def test_one_language() -> None:
    start = {"decoder_start_token_id": 2}
    bart = Frame((0,), (2,)), Frame((2, 0), (2,))
    assert found(BART, start, {}, Languages()) == bart
    assert found(BART, start | {"forced_bos_token_id": 0}, {}, Languages()) == bart
    marian = {"model_type": "marian", "eos_token_id": 0}
    expected = Frame((), (0,)), Frame((60,), (0,))
    assert found(marian, {"decoder_start_token_id": 60}, {}, Languages()) == expected


def test_languages() -> None:
    """mBART: `text </s> de_DE`, from en_XX; mBART-50: `de_DE text </s>`, `</s> en_XX` first."""
    last = {"tokenizer_class": "MBartTokenizer"}
    first = {"tokenizer_class": "MBart50TokenizerFast"}
    behind = Frame((), (2, 50)), Frame((51,), (2,))
    before = Frame((50,), (2,)), Frame((2, 51), (2,))
    assert found(MBART, {}, last) == behind
    assert found(MBART | last, {}, {}) == behind
    # A model that was tuned to one language says it.
    tuned = {"decoder_start_token_id": 51}
    assert found(MBART, tuned, last | {"src_lang": "de_DE"}, Languages()) == behind
    start = {"decoder_start_token_id": 2}
    assert found(MBART, start, first) == before
    forced = start | {"forced_bos_token_id": 51}
    assert found(MBART, forced, first, Languages(source="de_DE")) == before
    nllb = {"tokenizer_class": "NllbTokenizer"}
    assert found(M2M, start, nllb) == before
    assert found(M2M, {}, nllb | {"legacy_behaviour": True}) == behind
    french = found(M2M, start, {"tokenizer_class": "M2M100Tokenizer"}, Languages("fr", "en_XX"))
    assert french == (Frame((52,), (2,)), Frame((2, 51), (2,)))


@pytest.mark.parametrize(
    ("config", "tokenizer", "languages", "message"),
    [
        (BART, {}, GERMAN_ENGLISH, "bart models have no languages"),
        (BART, {}, Languages(), "decoder_start_token_id: is missing"),
        (MBART, {"tokenizer_class": "MBartTokenizer"}, Languages(), "give --source-language"),
        (
            MBART,
            {"tokenizer_class": "MBartTokenizer"},
            Languages("de_DE"),
            "give --target-language",
        ),
        (
            M2M,
            {"tokenizer_class": "NllbTokenizer"},
            Languages("xx", "en_XX"),
            "--source-language: the tokenizer has no token 'xx'",
        ),
        (MBART, {}, GERMAN_ENGLISH, "tokenizer_class: None does not say where languages stand"),
    ],
)
def test_what_is_missing(
    config: dict[str, Any], tokenizer: dict[str, Any], languages: Languages, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        found(config, {}, tokenizer, languages)
    assert str(caught.value).startswith("folder: ")
