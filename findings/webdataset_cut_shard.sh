#!/usr/bin/env bash
# webdataset reads a shard that was cut short without a word if the cut is not within a file's content: the
# samples behind it are missing, and the last one may have lost a field.
. "$(dirname "$0")/common.sh"
finding webdataset==1.0.2 numpy==2.4.6 <<'PYTHON'
from collections import Counter
from pathlib import Path

import webdataset
from webdataset.writer import TarWriter

FIELDS = {"ids": b"x" * 600, "text": b"y" * 100}
with TarWriter("whole.tar", encoder=False) as shard:
    for number in range(4):
        shard.write({"__key__": f"{number:04}", **FIELDS})
content = Path("whole.tar").read_bytes()


def outcome(size):
    """Of reading the first `size` bytes."""
    Path("cut.tar").write_bytes(content[:size])
    try:
        samples = list(webdataset.WebDataset("cut.tar", shardshuffle=False))
    except Exception:
        return "an error"
    if any(not FIELDS.keys() <= sample.keys() for sample in samples):
        return "samples without a field"
    return f"{len(samples)} samples"


# The last sample's content ends here; zeros follow.
end = content.rindex(b"y") + 1
found = Counter(outcome(size) for size in range(512, end, 64))
for name, count in sorted(found.items()):
    print(f"{count:3} of {found.total()} cuts: {name}")
assert found["an error"] > 0
assert found["samples without a field"] > 0
assert all(found[f"{number} samples"] for number in (1, 2, 3))
PYTHON
