"""Error rates by edit distance (jiwer), and exact match: for tasks with few right outputs.

Of several references the nearest counts: the one with the fewest edits; among these the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from janus_pt.tasks.outputs import Outputs, Scores
from janus_pt.utils.extras import require


def word_error_rate(outputs: Outputs) -> Scores:
    """Edits between words over the words of the references, over all outputs (WER)."""
    process_words = require("jiwer", "tasks").process_words
    value = _error_rate(outputs, process_words)
    return Scores({"wer": value}, {"wer": _signature("whitespace tokens")})


def phoneme_error_rate(outputs: Outputs) -> Scores:
    """Edits between phonemes over the phonemes of the references, over all outputs (PER).

    A text is a pronunciation, with phonemes between spaces. What papers on grapheme-to-phoneme
    conversion call word error rate is 100 minus `exact_match`.
    """
    process_words = require("jiwer", "tasks").process_words
    value = _error_rate(outputs, process_words)
    return Scores({"per": value}, {"per": _signature("phonemes between spaces")})


def character_error_rate(outputs: Outputs) -> Scores:
    """Edits between characters over the characters of the references, over all outputs (CER)."""
    process_characters = require("jiwer", "tasks").process_characters
    value = _error_rate(outputs, process_characters)
    return Scores({"cer": value}, {"cer": _signature("characters, spaces included")})


def exact_match(outputs: Outputs) -> Scores:
    """Share of the outputs that equal one of their references."""
    matches = 0
    for prediction, references in outputs.map_texts(_single_spaces):
        matches += prediction in references
    value = 100 * matches / len(outputs)
    return Scores({"exact_match": value}, {"exact_match": "equal up to white space"})


def _error_rate(outputs: Outputs, process: Callable[..., Any]) -> float:
    """Percentage of edits, each output against its nearest reference.

    Args:
        process: jiwer's `process_words` or `process_characters`.
    """
    outputs = outputs.map_texts(_single_spaces)
    predictions: list[str] = []
    references: list[str] = []
    for prediction, references_of_output in outputs:
        predictions += [prediction] * len(references_of_output)
        references += references_of_output
    # One call for all pairs: jiwer is slow to start, and fast once it runs.
    aligned = process(references, predictions)
    edits = [_edits(chunks) for chunks in aligned.alignments]
    lengths = [len(units) for units in aligned.references]
    all_edits = all_units = start = 0
    for references_of_output in outputs.references:
        pairs = range(start, start + len(references_of_output))
        nearest = min(pairs, key=edits.__getitem__)
        all_edits += edits[nearest]
        all_units += lengths[nearest]
        start = pairs.stop
    # Empty references have nothing to divide by: then each inserted unit counts as one error.
    return 100 * all_edits / max(1, all_units)


def _edits(chunks: Sequence[Any]) -> int:
    """Edits of one alignment of jiwer: insertions, deletions and substitutions."""
    edits = 0
    for chunk in chunks:
        if chunk.type != "equal":
            units_of_reference = chunk.ref_end_idx - chunk.ref_start_idx
            units_of_prediction = chunk.hyp_end_idx - chunk.hyp_start_idx
            edits += max(units_of_reference, units_of_prediction)
    return edits


def _signature(units: str) -> str:
    return f"jiwer, {units}, edits over units of the nearest reference"


def _single_spaces(text: str) -> str:
    return " ".join(text.split())
