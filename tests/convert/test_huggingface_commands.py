"""The commands on whole folders: texts in, texts out, as transformers' pipeline gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from janus_pt.config.origin import Origin, read_origin
from janus_pt.export.from_huggingface import convert_huggingface
from janus_pt.export.to_huggingface import export_to_huggingface
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tokenizer import read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.huggingface import save_bart, save_marian, save_mbart
from tests.support.models import tiny_model, tokenizer_bytes
from tests.tokenizer.texts import bart_json, lines

TEXTS = [line for line in lines()[:60] if len(line) < 60 and "…" not in line]
"""Without a character that their MBartTokenizer, unlike SentencePiece, leaves as it is."""


SAVE = {"BART": save_bart, "Marian": save_marian, "mBART": save_mbart}


@pytest.mark.parametrize("name", SAVE)
def test_texts_there_and_back(tmp_path: Path, name: str) -> None:
    original = SAVE[name](tmp_path / "theirs")
    (tmp_path / "theirs/README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    convert_huggingface(tmp_path / "theirs", tmp_path / "ours")
    origin = read_origin(tmp_path / "ours")
    assert origin == Origin(objective="ar", base_model="theirs", license="apache-2.0")
    ours = JanusModel.from_pretrained(tmp_path / "ours")
    found = ours.generate(TEXTS, max_length=12, min_length=1)

    export_to_huggingface(tmp_path / "ours", tmp_path / "back")
    card = ModelCard.load(tmp_path / "back/README.md")
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    for folder, model in (("theirs", original), ("back", None)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        if model is None:
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / folder)
        prefix = len(ours.config.target_frame.prefix)
        barred = {ours.config.pad_token_id, ours.config.bos_token_id, ours.config.mask_token_id}
        barred -= {ours.config.unk_token_id}
        for text, generation in zip(TEXTS, found, strict=True):
            out = model.generate(
                **tokenizer([text], return_tensors="pt"),
                max_new_tokens=12 + prefix,
                min_new_tokens=prefix,
                num_beams=1,
                bad_words_ids=[[token] for token in sorted(barred)],
            )
            assert out[0, prefix : prefix + len(generation.tokens)].tolist() == generation.tokens
            decoded = tokenizer.batch_decode(out, skip_special_tokens=True)[0]
            assert decoded.strip() == generation.text.strip()


def test_our_sentencepiece_model_becomes_a_tokenizer_of_theirs(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_bytes())
    model = tiny_model(3, torch.float32, ar_stream="content", vocab_size=tokenizer.vocab_size)
    JanusModel(model, tokenizer).save_pretrained(tmp_path / "ours")
    export_to_huggingface(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    for text in ("the slot reads the mask", "  two  spaces ", "Größe 漢字", "a <mask> b"):
        assert theirs(text)["input_ids"] == [1, *tokenizer.encode(text), 2]


def test_nothing_is_written_for_what_does_not_fit(tmp_path: Path) -> None:
    save_bart(tmp_path / "theirs")
    (tmp_path / "theirs/tokenizer.json").write_bytes(bart_json(300))
    with pytest.raises(UserError, match=r"has 300 tokens, but config.json a vocabulary of 450"):
        convert_huggingface(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "theirs/tokenizer.json").write_bytes(bart_json(460))
    with pytest.raises(UserError, match="has 460 tokens, the model 450 rows"):
        convert_huggingface(tmp_path / "theirs", tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
