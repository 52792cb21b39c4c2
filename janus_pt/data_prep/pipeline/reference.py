"""The reference of a corpus's configuration.

python -m janus_pt.data_prep.pipeline.reference > docs/reference/corpora.md
"""

from __future__ import annotations

from janus_pt.config.reference import reference
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig

HEAD = """# Configuration of a corpus

One JSON file describes a corpus for `janus-pt prep corpus`: see [corpora](../guides/corpora.md). Made from
`janus_pt/data_prep/pipeline/schema.py` by `python -m janus_pt.data_prep.pipeline.reference`; a test compares the two.
"""


def corpus_reference() -> str:
    """The whole page as Markdown."""
    return reference(CorpusBuildConfig, HEAD)


if __name__ == "__main__":
    print(corpus_reference(), end="")
