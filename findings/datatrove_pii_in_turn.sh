#!/usr/bin/env bash
# datatrove's PIIFormatter takes its replacements in turn, over all documents of a task: two equal documents are
# different afterwards, and exact deduplication keeps both.
. "$(dirname "$0")/common.sh"
finding datatrove==0.10.1 <<'PYTHON'
from datatrove.data import Document
from datatrove.pipeline.formatters import PIIFormatter

texts = ["Write to jane@mail.example.net today."] * 2
documents = [Document(text, str(number)) for number, text in enumerate(texts)]
masked = [document.text for document in PIIFormatter().run(documents)]
print(*masked, sep="\n")
assert masked[0] != masked[1]
PYTHON
