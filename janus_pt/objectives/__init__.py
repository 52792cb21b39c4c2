"""Objectives: each is a layout of slots and a weighted sum of loss terms over them.

An objective is a module here with an `OBJECTIVE` (see `base.Objective`), an entry in `OBJECTIVES`,
and a row in `janus_pt/config/objectives.py`."""

from __future__ import annotations

from janus_pt.objectives import ar, bang, bang_nar, cmlm, cmlmc, janus, joint
from janus_pt.objectives.base import Objective

OBJECTIVES: dict[str, Objective] = {
    "janus": janus.OBJECTIVE,
    "ar": ar.OBJECTIVE,
    "cmlm": cmlm.OBJECTIVE,
    "cmlmc": cmlmc.OBJECTIVE,
    "joint": joint.OBJECTIVE,
    "bang": bang.OBJECTIVE,
    "bang_nar": bang_nar.OBJECTIVE,
}
