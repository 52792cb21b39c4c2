#!/usr/bin/env bash
# SentencePiece cuts a list with num_threads=1 in a thread of its own, started anew at every call: the caller waits for
# it, and a list takes longer than its texts one by one.
. "$(dirname "$0")/common.sh"
finding sentencepiece==0.2.3 <<'PYTHON'
import random
import resource
import time
from pathlib import Path

import sentencepiece

draw = random.Random(1)
WORDS = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(2000)]
TEXTS = [" ".join(draw.choices(WORDS, k=12)) for _ in range(3000)]
Path("text").write_text("\n".join(TEXTS))
sentencepiece.SentencePieceTrainer.train(
    input="text", model_prefix="model", vocab_size=1500, num_threads=1, minloglevel=2
)
model = sentencepiece.SentencePieceProcessor(model_file="model.model")


def waits():
    """How often this process gave up its core to wait."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def count(name, cut):
    before, start = waits(), time.perf_counter()
    for text in TEXTS:
        cut(text)
    waited, seconds = waits() - before, time.perf_counter() - start
    print(f"{name}: {len(TEXTS)} calls waited {waited} times, {1e6 * seconds / len(TEXTS):.0f} us each")
    return waited


assert model.encode(TEXTS, num_threads=1) == [model.encode(text) for text in TEXTS]
one = count("a text", lambda text: model.encode(text))
listed = count("a list of that text, one thread", lambda text: model.encode([text], num_threads=1))
assert one < len(TEXTS) / 10 and listed >= len(TEXTS)
PYTHON
