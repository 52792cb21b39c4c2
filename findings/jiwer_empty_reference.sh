#!/usr/bin/env bash
# The word error rate of an empty reference is the number of words inserted, where the docstring
# promises a ValueError; beside another reference each of these words counts over that one's words.
. "$(dirname "$0")/common.sh"
finding jiwer==4.0.0 <<'PYTHON'
import jiwer

assert "ValueError: If one or more references are empty strings" in jiwer.process_words.__doc__
rate = jiwer.wer("", "one two three")
print("wer of an empty reference and three words:", rate)
assert rate == 3
together = jiwer.wer(["", "four"], ["one two three", "four"])
print("wer beside a right output of one word:", together)
assert together == 3
PYTHON
