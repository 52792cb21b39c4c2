"""Tokenizers from Hugging Face folders: ids and texts are those of transformers' own classes."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from janus_pt.convert.huggingface_tokenizer import from_huggingface
from janus_pt.convert.tokenizer_size import fitted, with_mask
from janus_pt.utils.errors import UserError
from tests.tokenizer.texts import (
    ODD,
    SPELLED,
    bart_json,
    lines,
    marian_folder,
    spm,
    vocabulary,
)

TEXTS = [*lines(), *ODD]
NORMAL = [text for text in lines() if unicodedata.normalize("NFKC", text) == text]
"""Texts that SentencePiece's normalisation leaves as they are."""


def theirs(tokenizer: Any, texts: list[str] | None, **arguments: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, **arguments)["input_ids"]
    return ids


# --- Marian ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["shared", "two"])
def marian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SentencePiece models, with one vocabulary or two."""
    return marian_folder(tmp_path_factory.mktemp("marian"), request.param == "two")


def test_marian(marian: Path) -> None:
    original = transformers.MarianTokenizer.from_pretrained(marian)
    target, source = from_huggingface(marian)
    assert source.encode_batch(TEXTS) == theirs(original, TEXTS)
    assert target.encode_batch(TEXTS) == theirs(original, None, text_target=TEXTS)
    assert target.encode_batch(TEXTS) != source.encode_batch(TEXTS)
    for text in TEXTS:
        ids = target.encode(text)
        text = original.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # theirs strips it; where an unknown character ended the text there is a space.
        assert target.decode([target.pad_token_id, *ids, 0]).strip() == text
    # What a model may write: pieces of either side, in any order.
    rng = random.Random(1)
    for _ in range(200):
        ids = rng.choices(range(target.vocab_size), k=rng.randrange(1, 12))
        ids = [token for token in ids if token not in target.special_ids]
        text = original.decode(ids, clean_up_tokenization_spaces=False)
        assert target.decode(ids).strip() == text
    assert target.shares_ids(source) == (not (marian / "target_vocab.json").exists())


def test_marian_reads_a_language_and_no_other_special_token(marian: Path) -> None:
    original = transformers.MarianTokenizer.from_pretrained(marian)
    source = from_huggingface(marian)[1]
    ids = source.encode_batch(SPELLED)
    assert ids == [original.convert_tokens_to_ids(original._tokenize(text)) for text in SPELLED]
    assert ids[SPELLED.index(">>fra<< x")][0] == source.token_id(">>fra<<")
    assert source.encode(">>xyz<< x")[0] == 1 == source.unk_token_id
    specials = [source.eos_token_id, source.pad_token_id, source.bos_token_id, source.mask_token_id]
    assert specials == [0, source.vocab_size - 1, None, None]
    for text in ["a <mask> b", "</s><s><pad>"]:
        assert not source.special_ids - {1} & set(source.encode(text))


def test_marian_with_equal_models_has_one_tokenizer(marian: Path, tmp_path: Path) -> None:
    for name in ("source.spm", "target.spm", "vocab.json"):
        content = (marian / name.replace("target.spm", "source.spm")).read_bytes()
        (tmp_path / name).write_bytes(content)
    (tokenizer,) = from_huggingface(tmp_path)
    longer = fitted(tokenizer, 500)
    assert longer.vocab_size == 500 and longer.piece(499) == "<unused499>"
    assert longer.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


# --- mBART, mBART-50, M2M-100 ---------------------------------------------------------------------


def saved(folder: Path, name: str, model: bytes) -> Any:
    """transformers' tokenizer, loaded from a SentencePiece model as the first releases were published."""
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    return getattr(transformers, name).from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "texts"),
    # transformers 5.24 leaves mBART's normalisation out.
    [("MBartTokenizer", NORMAL), ("MBart50Tokenizer", lines())],
)
def test_mbart(tmp_path: Path, name: str, texts: list[str]) -> None:
    model = spm(120)
    original = saved(tmp_path, name, model)
    (tokenizer,) = from_huggingface(tmp_path)
    assert tokenizer.vocabulary.tokens == original.convert_ids_to_tokens(range(len(original)))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    # fairseq: the ids of SentencePiece and one; unk is 3.
    expected = [[n + 1 if n else 3 for n in processor.encode(text)] for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == expected
    assert len(texts) > 100
    different = [text for text in texts if theirs(original, [text])[0] != tokenizer.encode(text)]
    # Of several equally good ways to cut a text the libraries may take different ones.
    assert len(different) <= 3 and all(same_score(processor, original, text) for text in different)
    ids = tokenizer.encode("the quick <mask> fox")
    assert tokenizer.mask_token_id == len(original) - 1 and tokenizer.mask_token_id not in ids
    masked = tokenizer.encode_masked("the quick <mask> fox")
    assert masked == theirs(original, ["the quick <mask> fox"])[0]
    language = tokenizer.token_id("fr_XX")
    assert language == original.convert_tokens_to_ids("fr_XX")
    assert tokenizer.decode([language, *tokenizer.encode("the  quick fox"), 2]) == "the quick fox"


def same_score(processor: Any, original: Any, text: str) -> bool:
    """Whether both libraries' pieces of a text have one score."""
    scores = []
    for found in (processor.encode(text, out_type=str), original.tokenize(text)):
        numbers = [processor.piece_to_id(piece) for piece in found]
        scores.append(sum(processor.get_score(number) for number in numbers if number))
    return abs(scores[0] - scores[1]) < 1e-4


def test_mbart_as_transformers_saves_it(tmp_path: Path) -> None:
    original = saved(tmp_path, "MBartTokenizer", spm(120))
    original.save_pretrained(tmp_path / "saved")
    (tokenizer,) = from_huggingface(tmp_path / "saved")
    assert tokenizer.file_name == "tokenizer.json"
    assert tokenizer.content == (tmp_path / "saved/tokenizer.json").read_bytes()
    assert tokenizer.encode_batch(TEXTS) == theirs(original, TEXTS)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == original.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    for text in SPELLED:
        assert not (tokenizer.special_ids - {3}) & set(tokenizer.encode(text))
    for text in ("a <mask> b", "the quick<mask>fox"):
        assert tokenizer.encode_masked(text) == theirs(original, [text])[0]


def test_ids_of_a_tokenizer_json_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    original = saved(tmp_path, "NllbTokenizer", spm(120, model_type="bpe"))
    with pytest.raises(UserError, match=r"NllbTokenizer'.*save the tokenizer with transformers"):
        from_huggingface(tmp_path)
    original.save_pretrained(tmp_path)
    (tokenizer,) = from_huggingface(tmp_path)
    assert tokenizer.vocabulary.tokens == original.convert_ids_to_tokens(range(len(original)))
    assert original.convert_tokens_to_ids("<mask>") in tokenizer.special_ids
    different = [text for text in lines() if theirs(original, [text])[0] != tokenizer.encode(text)]
    assert not different


def test_m2m100(tmp_path: Path) -> None:
    model = spm(120)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model)
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary(model, first=first, last=[])))
    original = transformers.M2M100Tokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "sentencepiece.bpe.model")
    )
    original.save_pretrained(tmp_path)
    (tokenizer,) = from_huggingface(tmp_path)
    assert tokenizer.encode_batch(TEXTS) == theirs(original, TEXTS)
    for language in ("en", "zu"):
        assert tokenizer.token_id(f"__{language}__") == original.get_lang_id(language)


# --- BART -----------------------------------------------------------------------------------------


@pytest.fixture
def bart(tmp_path: Path) -> Path:
    """BART's files as first published, with the mask in the vocabulary."""
    model = json.loads(bart_json())["model"]
    tokens = {**model["vocab"], "<mask>": len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return tmp_path


@pytest.mark.parametrize("add_prefix_space", [False, True])
@pytest.mark.parametrize("lstrip", [None, False, True])
def test_bart_from_vocabulary_and_merges(
    bart: Path, add_prefix_space: bool, lstrip: bool | None
) -> None:
    config: dict[str, Any] = {"add_prefix_space": add_prefix_space}
    if lstrip is not None:
        config["mask_token"] = {"__type": "AddedToken", "content": "<mask>", "lstrip": lstrip}
        config["mask_token"].update(rstrip=False, single_word=False, normalized=True)
    (bart / "tokenizer_config.json").write_text(json.dumps(config))
    original = transformers.BartTokenizerFast.from_pretrained(bart)
    (tokenizer,) = from_huggingface(bart)
    assert tokenizer.encode_batch(TEXTS) == theirs(original, TEXTS)
    assert tokenizer.keeps_text == (not add_prefix_space)
    masked = ["a <mask> b", "a<mask>b"]
    if lstrip is not None:
        assert [tokenizer.encode_masked(text) for text in masked] == theirs(original, masked)
    original.save_pretrained(bart / "saved")
    (again,) = from_huggingface(bart / "saved")
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


def test_tokenizer_config_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(bart_json())
    (tokenizer,) = from_huggingface(tmp_path)
    assert tokenizer.content == bart_json()
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    original = transformers.BartTokenizerFast.from_pretrained(tmp_path)
    (tokenizer,) = from_huggingface(tmp_path)
    assert tokenizer.encode_batch(TEXTS) == theirs(original, TEXTS)


def test_a_vocabulary_is_fitted_to_the_rows_of_the_model(bart: Path) -> None:
    (tokenizer,) = from_huggingface(bart)
    # As bart-large-cnn, which has no row for <mask>.
    shorter = fitted(tokenizer, 449)
    assert (shorter.vocab_size, shorter.mask_token_id) == (449, None)
    longer = with_mask(fitted(shorter, 460))
    assert longer.mask_token_id == 460 and longer.vocab_size == 461
    assert with_mask(longer).content == longer.content
    for each in (shorter, longer):
        assert each.encode_batch(SPELLED) == tokenizer.encode_batch(SPELLED)
    assert longer.encode_masked("a <mask>")[-1] == 460
    with pytest.raises(UserError, match="has 449 tokens, the model 448 rows"):
        fitted(shorter, 448)


# --- bad folders ----------------------------------------------------------------------------------


def change(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "no tokenizer here"),
        (change("vocab.json", b"{"), r"vocab\.json: not JSON"),
        (change("vocab.json", b"[]"), r"vocab\.json: not a JSON object"),
        (change("vocab.json", b'{"a": 1}'), r"vocab\.json: no token has the id 0"),
        (change("vocab.json", b'{"a": 0}'), r"merges\.txt: does not fit vocab\.json: the merge"),
        (change("merges.txt", b"a b c\n"), r"merges\.txt:1: a merge is two tokens"),
        (change("merges.txt", b"\xff \xfe\n"), r"merges\.txt: does not fit"),
        (change("tokenizer.json", b"{}"), r"tokenizer\.json: no tokenizer\.json that can be used"),
        (change("tokenizer_config.json", b'{"pad_token": "[PAD]"}'), r"pad_token is '\[PAD\]'"),
        (
            change("tokenizer_config.json", b'{"added_tokens_decoder": {"450": {"content": "x"}}}'),
            "added_tokens_decoder: 450: only special tokens",
        ),
    ],
)
def test_bad_folders(bart: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(bart)
    with pytest.raises(UserError, match=message) as caught:
        from_huggingface(bart)
    assert "\n" not in str(caught.value)
