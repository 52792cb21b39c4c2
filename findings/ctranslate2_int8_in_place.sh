#!/usr/bin/env bash
# CTranslate2's quantisation to int8 overwrites the float32 arrays that the caller put into the
# specification; quantisation to float16 does not.
. "$(dirname "$0")/common.sh"
finding ctranslate2==4.8.5 numpy==2.4.6 <<'PYTHON'
import numpy as np

import tiny_ctranslate2


def change(quantization):
    spec = tiny_ctranslate2.make()
    mine = spec.decoder.layer[0].ffn.linear_0.weight
    before = mine.copy()
    spec.validate()
    spec.optimize(quantization)
    largest = np.abs(mine).max(axis=1)
    print(quantization, "largest weights of rows:", np.abs(before).max(), "->", largest.max())
    return np.abs(mine - before).max()


assert change("float16") == 0
assert change("int8") > 100
PYTHON
