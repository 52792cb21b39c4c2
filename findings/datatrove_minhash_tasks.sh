#!/usr/bin/env bash
# datatrove's MinHash filter removes documents by their number within a task, and nothing compares the number
# of tasks with that of the signatures: with another one, other documents go and the duplicates stay.
. "$(dirname "$0")/common.sh"
finding datatrove==0.10.1 spacy==3.8.18 regex==2026.11.19 orjson==3.13.0 xxhash==3.8.2 tokenizers==0.23.3 <<'PYTHON'
import gzip
import json
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

CONFIG = MinhashConfig(num_buckets=2)
COPY = "this text about the weather of a long summer stands in two of the files"
TREES = "oak ash elm fir pine beech birch maple willow alder cedar larch"
BIRDS = "rook jay wren robin lark swift crow heron stork kite gull tern"
PARTS = "stem root leaf bark twig seed cone fruit nut bud thorn sap"
TOOLS = "saw file plane chisel hammer vice drill clamp rule awl rasp mallet"
FISH = "perch pike carp trout salmon eel cod herring tench bream roach dace"
ROCKS = "chalk slate flint marble basalt granite shale gneiss tuff schist sand clay"
FILES = [[COPY, TREES], [BIRDS, PARTS], [TOOLS, COPY], [FISH, ROCKS]]
Path("corpus").mkdir()
for file, texts in enumerate(FILES):
    lines = [json.dumps({"text": text, "id": text[:8]}) for text in texts]
    Path(f"corpus/{file}.jsonl").write_text("\n".join(lines))


def run(tasks, *steps):
    LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, skip_completed=False).run()


def kept(tasks):
    folder = Path(f"kept{tasks}")
    run(tasks, JsonlReader("corpus"), MinhashDedupFilter("remove"), JsonlWriter(str(folder)))
    files = [gzip.decompress(path.read_bytes()) for path in sorted(folder.glob("*.gz"))]
    lines = [line for file in files for line in file.splitlines()]
    return [json.loads(line)["text"].split()[0] for line in lines]


run(2, JsonlReader("corpus"), MinhashDedupSignature("signatures", config=CONFIG))
run(2, MinhashDedupBuckets("signatures", "buckets", config=CONFIG))
run(1, MinhashDedupCluster("buckets", "remove", config=CONFIG))
whole = {text.split()[0] for texts in FILES for text in texts}
same, other = kept(2), kept(3)
print("the filter with 2 tasks, as the signatures:", " ".join(same))
print("the filter with 3 tasks:                   ", " ".join(other))
assert sorted(same) == sorted(whole)
assert other.count("this") == 2
assert len(whole - set(other)) == 1
PYTHON
