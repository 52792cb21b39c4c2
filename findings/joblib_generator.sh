#!/usr/bin/env bash
# joblib's return_as="generator" takes all of its inputs however slowly its results are used: pre_dispatch
# bounds what runs, not what waits to be used.
. "$(dirname "$0")/common.sh"
finding joblib==1.6.0 <<'PYTHON'
import time

from joblib import Parallel, delayed

taken = []


def inputs():
    for number in range(500):
        taken.append(number)
        yield delayed(abs)(number)


results = Parallel(n_jobs=2, return_as="generator", pre_dispatch=4, batch_size=1)(inputs())
next(results)
end = time.monotonic() + 30
while len(taken) < 500 and time.monotonic() < end:
    time.sleep(0.1)
print("results used: 1, inputs taken:", len(taken), "of 500, with pre_dispatch=4")
assert len(taken) == 500
PYTHON
