"""Tokenizer files: kinds are told by content, unfit ones are refused, folders keep them as they are."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from janus_pt.checks import read_config
from janus_pt.convert.huggingface_tokenizer import from_huggingface
from janus_pt.convert.tokenizer_size import with_mask
from janus_pt.data.corpus import open_corpus
from janus_pt.data_prep.build_shards import CorpusRequest, build
from janus_pt.data_prep.verify_shards import verify
from janus_pt.export.checks import check_tokenizers
from janus_pt.export.folder import load_export, save_export
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tokenizer import (
    MAX_TOKENIZER_BYTES,
    Tokenizer,
    load_tokenizer,
    mapped_tokenizer,
    read_tokenizer,
)
from janus_pt.train.preflight import check_corpora
from janus_pt.utils.errors import UserError
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.runs import ROOT, write_run_config
from tests.tokenizer.texts import bart_json, lines, marian_folder

KINDS = ["tokenizer.model", "tokenizer.json", "tokenizer.mapped.json"]


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    if kind == "tokenizer.model":
        return read_tokenizer(tokenizer_bytes())
    if kind == "tokenizer.json":
        return read_tokenizer(bart_json())
    return with_mask(from_huggingface(marian_folder(folder / "marian"))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_keeps_the_file(tmp_path: Path, kind: str) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    # Any name will do.
    tokenizer.save(tmp_path / "file")
    assert load_tokenizer(tmp_path / "file").file_name == kind
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_positions=64, **tokenizer.model_ids)
    save_export(tmp_path / "export", model.state_dict(), model.config, tmp_path / "file")
    assert (tmp_path / "export" / kind).read_bytes() == tokenizer.content
    janus = JanusModel.from_pretrained(tmp_path / "export")
    assert janus.encode("the quick fox") == tokenizer.encode("the quick fox")
    assert janus.generate(["the quick fox"], mode="nar")[0].tokens
    # A new export of another kind takes the place of the old one whole.
    janus.save_pretrained(tmp_path / "copy")
    again = load_export(tmp_path / "copy").tokenizers[0]
    assert again.fingerprint == tokenizer.fingerprint


def test_exports_of_older_releases_are_read(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_bytes())
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    save_export(tmp_path / "export", model.state_dict(), model.config, [tokenizer])
    config = json.loads((tmp_path / "export/config.json").read_text())
    del config["tokenizer_file"], config["source_tokenizer_file"]
    (tmp_path / "export/config.json").write_text(json.dumps(config))
    assert load_export(tmp_path / "export").tokenizers[0].content == tokenizer_bytes()


def test_ids_that_are_missing_need_a_special_one_in_their_place(tmp_path: Path) -> None:
    (target, source) = from_huggingface(marian_folder(tmp_path))
    shape = dict(vocab_size=target.vocab_size)
    ids = target.model_ids
    check_tokenizers([target, source], tiny_model(**shape, **ids).config)
    for name in ("bos_token_id", "mask_token_id"):
        wrong = tiny_model(**shape, **{**ids, name: 7}).config
        with pytest.raises(UserError, match=f"its {name} is None, the model's is 7"):
            check_tokenizers([target, source], wrong)


def test_two_tokenizers_of_one_vocabulary_must_have_the_same_tokens() -> None:
    first = ["<pad>", "</s>", "<unk>"]
    target, source = (
        mapped_tokenizer("sentencepiece", tokenizer_bytes(), [*first, *more], origin=origin)
        for origin, more in (("a.json", ["\u2581the", "e"]), ("b.json", ["e", "\u2581the"]))
    )
    shape = dict(vocab_size=5, pad_token_id=0, eos_token_id=1, unk_token_id=2)
    shape.update(bos_token_id=0, mask_token_id=2)
    with pytest.raises(UserError, match=r"b\.json: has other tokens than a\.json; set"):
        check_tokenizers([target, source], tiny_model(**shape).config)
    check_tokenizers([target, source], tiny_model(**shape, source_vocab_size=5).config)


def test_special_ids_must_be_equal_on_both_sides(tmp_path: Path) -> None:
    (target, source) = from_huggingface(marian_folder(tmp_path, own_vocabularies=True))
    shape = {**target.model_ids, "vocab_size": target.vocab_size}
    own = tiny_model(**shape, source_vocab_size=source.vocab_size).config
    with pytest.raises(UserError, match=r"source\.spm: its pad_token_id is"):
        check_tokenizers([target, source], own)


# --- corpora --------------------------------------------------------------------------------------


def test_texts_with_a_tokenizer_json(tmp_path: Path) -> None:
    """By the real command: built, read back, and refused with another tokenizer."""
    (tmp_path / "text.txt").write_text("\n".join(lines()) + "\n")
    bart = tokenizer_of("tokenizer.json", tmp_path)
    bart.save(tmp_path / "bart")
    tokenizer_of("tokenizer.model", tmp_path).save(tmp_path / "other")
    arguments = ("--input", "text.txt", "--max-tokens", "64", "--workers", "1", "--output", "texts")
    command = [sys.executable, str(ROOT / "data_prep/build_shards.py"), *arguments]
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    done = run([*command, "--tokenizer", "bart"])
    assert done.returncode == 0, done.stderr
    corpus = open_corpus(str(tmp_path / "texts"))
    assert corpus.manifest.tokenizer.file == "tokenizer.json"
    assert (tmp_path / "texts/tokenizer.json").read_bytes() == bart.content
    blocks = [corpus.read(0, number)["text"] for number in range(corpus.manifest.samples)]
    assert len(blocks) > 50 and max(map(len, blocks)) <= 64
    written = "".join("".join(lines()).split())
    assert "".join("".join(map(bart.decode, blocks)).split()) == written
    done = run([*command, "--tokenizer", "other"])
    assert done.returncode == 2 and "(changed: tokenizer)" in done.stderr


def test_pairs_with_two_tokenizers_of_one_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.src").write_text("\n".join(lines()) + "\n")
    (tmp_path / "a.tgt").write_text("\n".join(reversed(lines())) + "\n")
    target, source = from_huggingface(marian_folder(tmp_path / "marian"))
    inputs = ((str(tmp_path / "a.src"), str(tmp_path / "a.tgt")),)
    request = CorpusRequest(inputs, target, source_tokenizer=source)
    # A file of an older build with another kind of tokenizer goes.
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/source_tokenizer.model").touch()
    build(request, tmp_path / "pairs", workers=1, overwrite=True)
    names = {path.name for path in (tmp_path / "pairs").glob("*tokenizer*")}
    assert names == {"tokenizer.mapped.json", "source_tokenizer.mapped.json"}
    corpus = open_corpus(str(tmp_path / "pairs"))
    assert corpus.manifest.tokenizer_hashes == [target.fingerprint, source.fingerprint]
    sample = corpus.read(0, 7)
    np.testing.assert_array_equal(sample["source"], source.encode(lines()[7]))
    np.testing.assert_array_equal(sample["target"], target.encode(lines()[-8]))
    assert list(verify(tmp_path / "pairs", workers=1)) == []
    # Before a training: the model must have the tokenizer's ids.
    data = {
        "data__train": [{"path": str(tmp_path / "pairs")}],
        "data__valid": str(tmp_path / "pairs"),
    }
    data.update(objective__recipe="translation", model__vocab_size=target.vocab_size)
    config = read_config(write_run_config(tmp_path, **data))
    pad = target.pad_token_id
    wrong = (
        rf"model\.pad_token_id is 0, its tokenizer has {pad}; set it to {pad}\n.*bos_token_id is 1"
    )
    with pytest.raises(UserError, match=wrong):
        check_corpora(config.data, config.model, config.objective)
    ids = {f"model__{name}": value for name, value in target.model_ids.items()}
    config = read_config(write_run_config(tmp_path, **data, **ids))
    assert len(check_corpora(config.data, config.model, config.objective)) == 2


# --- unfit files ----------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = json.loads(bart_json())
    change(content)
    return json.dumps(content).encode()


def mapped(**changes: Any) -> bytes:
    tokens = ["<pad>", "</s>", "<unk>", "\u2581the"]
    content = json.loads(mapped_tokenizer("sentencepiece", tokenizer_bytes(), tokens).content)
    return json.dumps({**content, **changes}).encode()


def word_piece() -> bytes:
    return tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0})).to_str().encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"{" * 100_000, "not JSON"),
        (b"[]", "neither a SentencePiece model nor a tokenizer.json"),
        (b"{}", 'no tokenizer.json that can be used: it has no "model"'),
        (edited(lambda c: c.pop("model")), "no tokenizer.json that can be used"),
        (edited(lambda c: c["model"]["vocab"].pop("the")), "no tokenizer.json that can be used"),
        (edited(lambda c: c["model"]["vocab"].update(zz=700)), "no token has the id"),
        (edited(lambda c: c["model"].update(dropout=0.1)), "model.dropout is for training"),
        (
            edited(lambda c: c["model"].update(continuing_subword_prefix="x")),
            "model.continuing_subword_prefix is not supported",
        ),
        (edited(lambda c: c.update(normalizer={"type": "Precompiled"})), "can be used"),
        (word_piece(), "its model is WordPiece, not one of: BPE, Unigram"),
        (bart_json().replace(b'"<pad>"', b'"<PAD>"'), "has no token <pad>"),
        (mapped(version=2), "version: Input should be 1"),
        (mapped(format="other"), "format: "),
        (mapped(model="&&"), "model: |neither a SentencePiece"),
        (mapped(tokens=["<pad>", "</s>"]), "has no token <unk>"),
        (mapped(tokens=["<unk>", "</s>"]), "has no token <pad>"),
        (mapped(codes=["fr"]), "codes: one of them is no token"),
        (mapped(segmenter="tokenizers"), "not JSON"),
        (mapped(more=1), "more: Extra inputs are not permitted"),
    ],
)
def test_unfit_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "unfit").write_bytes(content)
    with pytest.raises(UserError, match=rf"unfit: .*({message})") as caught:
        load_tokenizer(tmp_path / "unfit")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_of_absurd_size_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(UserError, match=r"huge: .* the limit is"):
        load_tokenizer(tmp_path / "huge")


def test_a_changed_file_is_another_tokenizer_or_our_error() -> None:
    rng = random.Random(3)
    for content in [mapped(), bart_json(300)] * 150:
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            tokenizer = read_tokenizer(bytes(changed))
            ids = tokenizer.encode("the quick <mask>")
            assert all(0 <= token < tokenizer.vocab_size for token in ids)
            tokenizer.decode(ids)
        except UserError as error:
            assert "\n" not in str(error)
