#!/usr/bin/env bash
# CTranslate2 scores an output by its probability among the tokens that are allowed: to suppress a token
# that the output does not hold raises the output's score.
. "$(dirname "$0")/common.sh"
finding ctranslate2==4.8.5 numpy==2.4.6 <<'PYTHON'
import tiny_ctranslate2

translator = tiny_ctranslate2.save(tiny_ctranslate2.make(), "model")


def scores(barred):
    found = translator.translate_batch(
        [list("abcd")],
        target_prefix=[list("abc")],
        beam_size=4,
        num_hypotheses=4,
        max_decoding_length=6,
        suppress_sequences=barred,
        length_penalty=0,
        return_scores=True,
    )[0]
    return dict(zip(map(" ".join, found.hypotheses), found.scores, strict=True))


free, suppressed = scores(None), scores([["<pad>"]])
both = free.keys() & suppressed.keys()
for output in sorted(both):
    print(f"{output:18} all allowed {free[output]:.4f}, without <pad> {suppressed[output]:.4f}")
assert len(both) > 1
assert all(suppressed[output] > free[output] + 1e-3 for output in both)
PYTHON
