#!/usr/bin/env bash
# CTranslate2 starts Marian's decoder from a zero vector and takes <pad> out of the vocabulary. transformers
# starts from the row of <pad>, which training moves away from zero, since it is a row of the output, too.
. "$(dirname "$0")/common.sh"
finding ctranslate2==4.8.5 transformers==5.24.0 sentencepiece==0.2.3 torch==2.13.0 <<'PYTHON'
import json
import string
from pathlib import Path

import ctranslate2
import sentencepiece
import torch
from ctranslate2.converters import TransformersConverter
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from tiny_transformers import SIZES

torch.manual_seed(0)
Path("text").write_text("\n".join(f"{a} {b}" for a in string.ascii_lowercase for b in "aeiou"))
sentencepiece.SentencePieceTrainer.train(
    input="text", model_prefix="spm", vocab_size=40, hard_vocab_limit=False, minloglevel=2
)
pieces = sentencepiece.SentencePieceProcessor(model_file="spm.model")
names = ["</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces))), "<pad>"]
Path("vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
tokenizer = MarianTokenizer("spm.model", "spm.model", "vocab.json")
PAD = len(names) - 1

special = dict(pad_token_id=PAD, eos_token_id=0, decoder_start_token_id=PAD)
model = MarianMTModel(MarianConfig(vocab_size=len(names), init_std=0.5, **SIZES, **special)).eval()
source, target = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[8, 9, 0]])


def difference(folder):
    """Of the targets' log-probabilities, once <pad> has no share in transformers' either."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TransformersConverter(folder).convert(f"{folder}_converted")
    translator = ctranslate2.Translator(f"{folder}_converted")
    texts = [[names[i] for i in ids[0].tolist()] for ids in (source, target)]
    found = translator.score_batch([texts[0]], [texts[1][:-1]])[0].log_probs
    with torch.no_grad():
        logits = model(input_ids=source, labels=target).logits
    logits[..., PAD] = -torch.inf
    logs = logits.log_softmax(-1).gather(-1, target[..., None]).flatten()
    return (logs - torch.tensor(found)).abs().max().item()


zero = difference("zero")
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
model(input_ids=source, labels=target).loss.backward()
optimizer.step()
moved = model.model.shared.weight[PAD].abs().max().item()
trained = difference("trained")
print(f"row of <pad> zero: largest difference of log-probabilities {zero:.1e}")
print(f"after one step of training (row up to {moved:.2f}): {trained:.1e}")
assert zero < 1e-4
assert moved > 1e-3
assert trained > 1e-3
PYTHON
