#!/usr/bin/env bash
# Models of characters or words cannot be trained with byte_fallback: the size of the vocabulary
# overflows, and the message names neither the option nor the reason.
. "$(dirname "$0")/common.sh"
finding sentencepiece==0.2.3 <<'PYTHON'
import io

import sentencepiece


def train(**options):
    """The trained model's pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three"] * 3),
        model_writer=model,
        minloglevel=2,
        **options,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return processor.vocab_size()


for model_type in ("char", "word"):
    common = dict(model_type=model_type, vocab_size=100, hard_vocab_limit=False)
    print(model_type, "without byte_fallback:", train(**common), "pieces")
    try:
        train(**common, byte_fallback=True)
    except RuntimeError as error:
        print(model_type, "with byte_fallback:", error)
        assert "vocab_size) >= (0)" in str(error) and "byte" not in str(error)
    else:
        raise AssertionError("it trains")
PYTHON
