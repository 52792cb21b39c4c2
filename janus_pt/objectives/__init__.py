"""Objectives: each is a layout of slots and a weighted sum of loss terms over them.

A module has `terms(config)`, `weights(config)` in the order of the terms with the length's last, and `example(…)`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives import ar, bang, bang_nar, cmlm, cmlmc, janus, joint
from janus_pt.packing.batch import Example, IntArray

OBJECTIVES: dict[str, ModuleType] = {
    "janus": janus,
    "ar": ar,
    "cmlm": cmlm,
    "cmlmc": cmlmc,
    "joint": joint,
    "bang": bang,
    "bang_nar": bang_nar,
}
AR_STREAMS = ("janus", "ar", "joint")
"""Objectives whose P_AR is where `model.ar_stream` says."""


def build_example(
    source: IntArray,
    target: IntArray,
    masked: IntArray,
    model: ModelConfig,
    objective: ObjectiveConfig,
    corrected: IntArray | None = None,
) -> Example:
    """The example that the objective makes of a pair; `target` has bos and eos, the positions `masked` neither.

    `corrected`: for `cmlmc` alone, positions that show and are to be corrected.
    """
    options: dict[str, Any] = (
        {"streams": objective.bang_streams} if objective.name == "bang" else {}
    )
    if objective.name == "cmlmc":
        options["corrected"] = corrected
    if objective.name in AR_STREAMS:
        options["ar_stream"] = model.ar_stream
    module = OBJECTIVES[objective.name]
    made: Example = module.example(
        source, target, masked, model.mask_token_id, model.ar_position_offset, **options
    )
    return made
