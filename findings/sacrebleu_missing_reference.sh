#!/usr/bin/env bash
# sacrebleu takes an empty string for a reference of no words: where a sentence has fewer references than
# others, it turns off the brevity penalty of short outputs. None stands for a missing reference.
. "$(dirname "$0")/common.sh"
finding sacrebleu==2.6.0 <<'PYTHON'
from sacrebleu.metrics import BLEU

OUTPUT = ["a cat sat on"]
REFERENCE = ["a cat sat on the mat in the hall"]


def score(second):
    bleu = BLEU()
    found = bleu.corpus_score(OUTPUT, [REFERENCE, second])
    print(
        f"second reference {second[0]!r}: {found.score:.1f}, BP {found.bp:.3f},",
        bleu.get_signature(),
    )
    return found


none, empty = score([None]), score([""])
assert none.ref_len == len(REFERENCE[0].split())
assert empty.ref_len == 0
assert none.score < 40 and empty.score > 99
PYTHON
