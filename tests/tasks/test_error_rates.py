"""Error rates against a textbook edit distance written out here, and against values computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.tasks.error_rates import (
    character_error_rate,
    exact_match,
    phoneme_error_rate,
    word_error_rate,
)
from janus_pt.tasks.evaluate import score_texts
from janus_pt.tasks.metrics import compare_outputs, compared_metric
from janus_pt.tasks.outputs import Outputs
from janus_pt.tasks.reading import TaskSplit
from janus_pt.tasks.table import find_task


def edit_distance(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Wagner and Fischer 1974, the whole table."""
    table = [
        [i + j if not i * j else 0 for j in range(len(theirs) + 1)] for i in range(len(ours) + 1)
    ]
    for i, a in enumerate(ours, start=1):
        for j, b in enumerate(theirs, start=1):
            table[i][j] = min(
                table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b)
            )
    return table[-1][-1]


phonemes = st.lists(st.sampled_from(["AH", "A", "T", "HH"]), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(phonemes, st.lists(phonemes, min_size=1, max_size=3)), min_size=1, max_size=4
    )
)
def test_rates_are_edits_over_units_of_the_nearest_reference(
    pairs: list[tuple[str, list[str]]],
) -> None:
    outputs = Outputs([p for p, _ in pairs], [references for _, references in pairs])
    for metric, units in (("wer", str.split), ("cer", list)):
        edits = length = 0
        for prediction, references in pairs:
            distances = [edit_distance(units(prediction), units(text)) for text in references]
            edits += min(distances)
            length += len(units(references[distances.index(min(distances))]))
        expected = float(Fraction(100 * edits, max(1, length)))
        compute = word_error_rate if metric == "wer" else character_error_rate
        assert compute(outputs).values[metric] == pytest.approx(expected)
    assert phoneme_error_rate(outputs).values["per"] == word_error_rate(outputs).values["wer"]


def test_values_by_hand() -> None:
    outputs = Outputs(["T AH M EY T OW", "R UW T"], [["T AH M EY T OW", "X"], ["R AW T S", "Y"]])
    # The first is right; the second has one phoneme wrong and one missing, of 10 in all.
    assert phoneme_error_rate(outputs).values["per"] == pytest.approx(20)
    assert exact_match(outputs).values["exact_match"] == pytest.approx(50)
    # Too many words are more than 100 % wrong.
    assert word_error_rate(Outputs(["a b c"], [["d"]])).values["wer"] == pytest.approx(300)


def test_exact_match_looks_at_all_references_and_past_white_space() -> None:
    outputs = Outputs(["a b c", "d e", ""], [["x", "a  b c"], ["d f"], [""]])
    assert exact_match(outputs).values["exact_match"] == pytest.approx(100 * 2 / 3)


def test_all_pronunciations_of_a_word_are_right() -> None:
    task = find_task("g2p/cmudict")
    examples = TaskSplit(["route", "the", "route"], ["R UW T", "DH AH", "R AW T"])
    scores = score_texts(task, ["R AW T", "DH IY", "R AW T"], examples).values
    assert scores == {"exact_match": pytest.approx(50), "per": pytest.approx(20)}


def test_any_two_files_are_a_task() -> None:
    examples = TaskSplit(["1", "2"], ["one", "twenty two"])
    scores = score_texts(find_task("pairs"), ["one", "twenty"], examples).values
    assert scores["exact_match"] == 50 and scores["wer"] == pytest.approx(100 / 3)
    assert scores["cer"] == pytest.approx(100 * 4 / 13)


def test_a_comparison_says_how_far_chance_reaches() -> None:
    """Against the binomial distribution, and against itself."""
    references = [[str(number)] for number in range(400)]
    right = [texts[0] for texts in references]
    ours = [text if index % 4 else "wrong" for index, text in enumerate(right)]
    found = compare_outputs("exact_match", Outputs(ours, references), ours)
    # 1.96 standard deviations of the share of 300 in 400.
    assert found["system_ci"] == pytest.approx(196 * (0.75 * 0.25 / 400) ** 0.5, rel=0.1)
    assert found["difference"] == 0 and found["p_value"] == 1
    better = compare_outputs("exact_match", Outputs(right, references), ours)
    assert better["difference"] == 25 and better["p_value"] < 0.01
    # One output of 400 is no difference that chance does not make.
    one_more = ["0", *ours[1:]]
    slightly = compare_outputs("exact_match", Outputs(one_more, references), ours)
    assert slightly["difference"] == pytest.approx(0.25) and slightly["p_value"] > 0.2


def test_what_a_task_is_compared_by() -> None:
    assert compared_metric(find_task("g2p/cmudict").metrics) == "exact_match"
    assert compared_metric(find_task("nmt").metrics) == "bleu"
    assert compared_metric(find_task("glge/squad_qg").metrics) == "bleu"
