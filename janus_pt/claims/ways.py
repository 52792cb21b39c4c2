"""The ways to decode that are compared, by mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_pt.config.objectives import OBJECTIVES

Ways = Mapping[str, Mapping[str, Any]]
"""Name of a way to decode -> mode and options of `JanusModel.generate`."""
LENGTHS = 3
"""Lengths that mask-predict tries."""
GREEDY = "AR greedy"
"""The way that others are timed against, and that speculative decoding must agree with."""

WAYS_OF_MODE: Mapping[str, Ways] = {
    "ar": {
        GREEDY: {"mode": "ar", "num_beams": 1},
        "AR beam 5": {"mode": "ar", "num_beams": 5},
    },
    "nar": {
        "NAR 4 passes, 1 length": {"mode": "nar", "iterations": 4, "length_beam": 1},
        "NAR 4 passes": {"mode": "nar", "iterations": 4, "length_beam": LENGTHS},
        "NAR 10 passes": {"mode": "nar", "iterations": 10, "length_beam": LENGTHS},
    },
    "rerank": {"rerank": {"mode": "rerank", "iterations": 10, "length_beam": LENGTHS}},
    "speculative": {"speculative": {"mode": "speculative"}},
    # It writes what the two others write.
    "auto": {},
    # BANG ends at the first eos of its one pass, and repeats tokens as all one-pass decoders do.
    "bang_nar": {"NAR 1 pass, to eos": {"mode": "bang_nar", "remove_repeats": True}},
    "ctc": {"CTC 1 pass": {"mode": "ctc"}},
}
COUNTERPART = {"rerank": "AR beam 5", "speculative": GREEDY}
"""What a way is compared with where the baseline does not have it."""


def ways_of(objective: str) -> Ways:
    """The ways to decode an objective's models: the ways of the modes in its row."""
    row = OBJECTIVES[objective]
    ways = {}
    for mode in row.modes:
        for name, options in WAYS_OF_MODE[mode].items():
            ways[name] = {**options, **row.mode_options.get(mode, {})}
    return ways
