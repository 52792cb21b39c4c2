"""Error rates by edit distance (jiwer), and exact match: for tasks with few right outputs.

Of several references the nearest counts: the one with the fewest edits; among these the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_pt.tasks.outputs import Outputs, Scores
from janus_pt.tasks.significance import Sums
from janus_pt.utils.extras import require


def word_error_rate(outputs: Outputs) -> Scores:
    """Edits between words over the words of the references, over all outputs (WER)."""
    return _scores("wer", word_sums(outputs), _signature("whitespace tokens"))


def phoneme_error_rate(outputs: Outputs) -> Scores:
    """Edits between phonemes over the phonemes of the references, over all outputs (PER).

    A text is a pronunciation, with phonemes between spaces. What papers on grapheme-to-phoneme
    conversion call word error rate is 100 minus `exact_match`.
    """
    return _scores("per", word_sums(outputs), _signature("phonemes between spaces"))


def character_error_rate(outputs: Outputs) -> Scores:
    """Edits between characters over the characters of the references, over all outputs (CER)."""
    return _scores("cer", character_sums(outputs), _signature("characters, spaces included"))


def exact_match(outputs: Outputs) -> Scores:
    """Share of the outputs that equal one of their references."""
    return _scores("exact_match", match_sums(outputs), "equal up to white space")


def word_sums(outputs: Outputs) -> Sums:
    """Edits between words, and words of the nearest reference."""
    return _edit_sums(outputs, require("jiwer", "tasks").process_words)


def character_sums(outputs: Outputs) -> Sums:
    """Edits between characters, and characters of the nearest reference."""
    return _edit_sums(outputs, require("jiwer", "tasks").process_characters)


def match_sums(outputs: Outputs) -> Sums:
    """1 for each output that equals one of its references, else 0; of 1."""
    pairs = outputs.map_texts(_single_spaces)
    matches = [float(prediction in references) for prediction, references in pairs]
    return Sums(np.array(matches), np.ones(len(outputs)))


def _scores(name: str, sums: Sums, signature: str) -> Scores:
    return Scores({name: sums.percentage()}, {name: signature})


def _edit_sums(outputs: Outputs, process: Callable[..., Any]) -> Sums:
    """Edits and units of each output against its nearest reference.

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
    nearest = []
    start = 0
    for references_of_output in outputs.references:
        pairs = range(start, start + len(references_of_output))
        nearest.append(min(pairs, key=edits.__getitem__))
        start = pairs.stop
    counted = np.array([edits[pair] for pair in nearest], dtype=float)
    units = np.array([lengths[pair] for pair in nearest], dtype=float)
    return Sums(counted, units)


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
