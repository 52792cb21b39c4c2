#!/usr/bin/env bash
# CTranslate2 counts target_prefix in min_decoding_length, in max_decoding_length and in the length that a
# score is divided by. With a prefix the default minimum of 1 does not prevent an empty output.
. "$(dirname "$0")/common.sh"
finding ctranslate2==4.8.5 numpy==2.4.6 <<'PYTHON'
import tiny_ctranslate2

translator = tiny_ctranslate2.save(tiny_ctranslate2.make(), "model")
PREFIX = list("abc")


def decode(**options):
    found = translator.translate_batch(
        [list("abcd")], target_prefix=[PREFIX], return_scores=True, **options
    )[0]
    return found.hypotheses[0][len(PREFIX) :], found.scores[0]


empty, summed = decode(length_penalty=0)
_, divided = decode(length_penalty=1)
longer, _ = decode(min_decoding_length=4)
shorter, _ = decode(min_decoding_length=5, max_decoding_length=5)
print("default minimum of 1 writes", empty)
print("minimum 4 writes", longer)
print("minimum and maximum 5 write", shorter)
print(f"the score of the default, a prefix of 3 and eos, is divided by {summed / divided:.2f}")
assert empty == []
assert len(longer) >= 1
assert len(shorter) == 5 - len(PREFIX)
assert abs(summed / divided - (len(PREFIX) + 1)) < 1e-3
PYTHON
