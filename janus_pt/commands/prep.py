"""Make tokenizers and corpora from text.

  janus-pt prep train-tokenizer --input books.jsonl.xz --vocab-size 32000 --output tokenizer.model
  janus-pt prep build-shards --input books.jsonl.xz --tokenizer tokenizer.model --output corpus
  janus-pt prep corpus --config corpora/english_web --dry-run
  janus-pt prep verify corpus

Each command has a --help of its own.
"""

from __future__ import annotations

from janus_pt.utils.commands import module_command

COMMANDS = {
    "train-tokenizer": module_command(
        "janus_pt.data_prep.train_tokenizer", "train a SentencePiece tokenizer"
    ),
    "build-shards": module_command(
        "janus_pt.data_prep.build_shards", "a corpus from documents or sentence pairs"
    ),
    "corpus": module_command(
        "janus_pt.data_prep.build_corpus", "a corpus from crawled text or mined pairs, cleaned"
    ),
    "mixture": module_command(
        "janus_pt.data_prep.mixture", "weights of several corpora, by temperature"
    ),
    "build-task": module_command(
        "janus_pt.data_prep.build_task",
        "the corpora of a task, one for each split",
        "docs/guides/tasks.md",
    ),
    "verify": module_command(
        "janus_pt.data_prep.verify_shards", "check a corpus against its manifest"
    ),
    "demo-corpus": module_command(
        "janus_pt.data_prep.demo_corpus", "text and pairs made without a download"
    ),
    "spoken-forms": module_command(
        "janus_pt.data_prep.spoken_forms", "dates, times and amounts as written and as spoken"
    ),
    "cmudict": module_command(
        "janus_pt.data_prep.cmudict", "words and pronunciations of CMUdict, the task g2p/cmudict"
    ),
}
