#!/usr/bin/env bash
# datatrove shares a MinHash bucket among tasks by the signatures of the first file alone: where it has fewer than there
# are tasks for a bucket, as after a filter, no task of the stage can run, however many the other files have.
. "$(dirname "$0")/common.sh"
finding datatrove==0.10.1 regex==2026.11.19 orjson==3.13.0 xxhash==3.8.2 tokenizers==0.23.3 <<'PYTHON'
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

CONFIG = MinhashConfig(num_buckets=2)


class Words(WordTokenizer):
    def word_tokenize(self, text):
        return text.split()

    def sent_tokenize(self, text):
        return [text]

    def span_tokenize(self, text):
        return [(0, len(text))]


def sign(rank, count):
    texts = [f"text {n} of file {rank} " + " ".join(f"w{n}x{i}" for i in range(9)) for n in range(count)]
    documents = [Document(text, str(n)) for n, text in enumerate(texts)]
    MinhashDedupSignature("signatures", config=CONFIG, language=Words()).run(documents, rank, 3)


def match():
    # Four tasks: two for each of two buckets.
    MinhashDedupBuckets("signatures", "buckets", config=CONFIG).run(None, 0, 4)


for counts in ((50, 50, 50), (50, 50, 1), (1, 50, 50)):
    for rank, count in enumerate(counts):
        sign(rank, count)
    try:
        match()
        print("documents by file:", counts, "- runs")
        assert counts[0] > 1
    except AssertionError as error:
        print("documents by file:", counts, "-", error)
        assert counts[0] == 1 and "only 1 lines" in str(error)
PYTHON
