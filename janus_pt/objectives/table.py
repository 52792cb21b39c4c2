"""All objectives by name. Each has a row in `janus_pt/config/objectives.py` as well."""

from __future__ import annotations

from janus_pt.objectives import ar, bang, bang_nar, cmlm, cmlmc, ctc, janus, joint
from janus_pt.objectives.base import Objective

OBJECTIVES: dict[str, Objective] = {
    "janus": janus.OBJECTIVE,
    "ar": ar.OBJECTIVE,
    "cmlm": cmlm.OBJECTIVE,
    "cmlmc": cmlmc.OBJECTIVE,
    "joint": joint.OBJECTIVE,
    "bang": bang.OBJECTIVE,
    "bang_nar": bang_nar.OBJECTIVE,
    "ctc": ctc.OBJECTIVE,
}
