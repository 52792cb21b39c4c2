"""Decoding by CTC against a plain reading of each slot."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from janus_pt.generate.modes import check_options
from janus_pt.objectives.ctc import num_slots
from janus_pt.packing.slots import MASKED, make_slots
from janus_pt.utils.errors import UserError
from tests.support.models import SPECIALS, as_source, full_pass, random_sources, tiny_model

MASK = 4


@pytest.mark.parametrize("max_length", [None, 2])
def test_outputs_are_the_collapsed_best_path(max_length: int | None) -> None:
    """Sources of different lengths, decoded together, and slot by slot alone."""
    model = tiny_model(3, upsampling=3, max_positions=26, output_bias=True)
    # Blanks must occur, but not everywhere.
    with torch.no_grad():
        model.output.bias[MASK] = 12.0
    sources = random_sources(1, 12)
    options = check_options("ctc", max_length=max_length)
    found = options.decode(model, as_source(sources))
    kinds = set()
    for number, source in enumerate(sources):
        count = num_slots(len(source), model.config)
        slots = make_slots(MASK, np.arange(count), MASKED, rank=0, until=1)
        log_probs = full_pass(model, source, slots)
        allowed = torch.full_like(log_probs, -torch.inf)
        allowed[:, MASK] = log_probs[:, MASK]
        allowed[:, SPECIALS:] = log_probs[:, SPECIALS:]
        score, path = allowed.max(-1)
        collapsed = [token for token, _ in groupby(path.tolist())]
        kinds |= {"repeat"} if len(collapsed) < count else set()
        kinds |= {"blank"} if MASK in collapsed else set()
        expected = [token for token in collapsed if token != MASK][:max_length]
        length = int(found.lengths[number, 0])
        assert found.tokens[number, 0, :length].tolist() == expected
        assert float(found.scores[number, 0]) == pytest.approx(float(score.mean()))
    assert kinds == {"repeat", "blank"}, "the random model must show both"
    assert (found.passes == 1).all()


def test_a_shortest_length_cannot_be_forced() -> None:
    with pytest.raises(UserError, match="min_length: blanks may stand anywhere"):
        check_options("ctc", min_length=3)
