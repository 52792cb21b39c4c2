"""Count what a training step of a configuration costs on the null GPU.

    python -m tests.support.null_gpu.environment -m tests.support.null_gpu.step \
        configs/janus_base.json --length 512 KEY=VALUE ...

Prints a JSON object (`training.StepCost`). With `--ranks N --rank R` the process is one rank of N.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path

from janus_pt.checks import read_config
from tests.support.null_gpu import counters


def main() -> None:
    """Measure one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a configuration")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to it")
    parser.add_argument("--length", type=int, default=512, help="tokens of each sample")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the job")
    parser.add_argument("--rank", type=int, default=0, help="the rank that this process is")
    parser.add_argument("--repetitions", type=int, default=5, help="steps that are timed")
    parser.add_argument("--kernels", type=int, default=0, help="how many kernels to name")
    parser.add_argument("--output", type=Path, help="file for the result, else standard output")
    options = parser.parse_intermixed_args()
    if options.kernels:
        os.environ["NULL_GPU_KERNEL_NAMES"] = "1"
    if options.ranks > 1:
        from tests.support.null_gpu import lone_rank

        lone_rank.become(options.rank, options.ranks)
    from tests.support.null_gpu import training

    config = read_config(options.config, options.overrides, options.ranks)
    engine = training.start(config)
    batches = training.step_batches(config, engine, options.length)
    cost = training.measure(engine, batches, options.repetitions)
    found = cost.as_dict()
    found["transfers"] = _summary(cost.transfers)
    if options.kernels:
        # Of the timed steps: all alike.
        found["kernels"] = dict(counters.kernels().most_common(options.kernels))
    text = json.dumps(found, indent=2)
    if options.output:
        options.output.write_text(text)
    else:
        print(text, flush=True)
    # Without ending the groups: other ranks are not there to take part.
    os._exit(0)


def _summary(transfers: list[counters.Transfer]) -> dict[str, str]:
    """Bytes and calls by kind, type and ranks."""
    sizes: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for transfer in transfers:
        key = f"{transfer.kind} {transfer.dtype} of {transfer.ranks}"
        sizes[key] += transfer.bytes
        calls[key] += 1
    return {key: f"{sizes[key]:,} bytes in {calls[key]} calls" for key in sorted(sizes)}


if __name__ == "__main__":
    main()
