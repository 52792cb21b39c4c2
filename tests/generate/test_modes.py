"""The modes, and the objectives' rows that name them."""

from __future__ import annotations

import pytest

from janus_pt.config.objectives import OBJECTIVES
from janus_pt.generate.modes import MODES, check_options, check_scored_options
from janus_pt.utils.errors import UserError


def test_every_mode_belongs_to_an_objective_and_every_objective_to_a_mode() -> None:
    named = {mode for row in OBJECTIVES.values() for mode in row.modes}
    assert named == set(MODES)
    assert all(row.modes for row in OBJECTIVES.values())


def test_the_options_in_the_objectives_rows_are_options_of_their_modes() -> None:
    for row in OBJECTIVES.values():
        for mode, values in row.mode_options.items():
            assert mode in row.modes
            options = check_options(mode, **values)
            assert {name: getattr(options, name) for name in values} == values


def test_scored_outputs_are_one_for_each_source() -> None:
    for mode in MODES:
        assert check_scored_options(mode).num_outputs == 1
    with pytest.raises(UserError, match=r"^num_return_sequences: must be 1 .* but is 2"):
        check_scored_options("ar", num_beams=4, num_return_sequences=2)
