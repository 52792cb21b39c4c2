#!/usr/bin/env bash
# One byte that is not UTF-8 ends a file for datatrove's JsonlReader: the rest of its lines is gone, the task counts
# as complete, and a log file has a warning.
. "$(dirname "$0")/common.sh"
finding datatrove==0.10.1 orjson==3.13.0 tokenizers==0.23.3 <<'PYTHON'
import json
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

LINES = 5000
# Larger than what is decoded at once, so that not even the first part is lost as a whole.
lines = [json.dumps({"text": f"document {number}"}).encode() for number in range(LINES)]
lines[1000] = b'{"text": "caf\xe9"}'
Path("corpus").mkdir()
Path("corpus/a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
steps = [JsonlReader("corpus"), JsonlWriter("read", compression=None)]
LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir="logs").run()
read = len(Path("read/00000.jsonl").read_text().splitlines())
complete = Path("logs/completions/00000").exists()
print(f"{read} of {LINES} lines read, one of which has a bad byte; complete: {complete}")
assert complete and read <= 1000
PYTHON
