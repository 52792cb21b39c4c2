"""The objectives, one row each: what the configuration, the checks and the reports need to know of
them.

What an objective computes is in `janus_pt/objectives/`; a new one is a module there and a row here.
No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "pretraining": {
        "ce_ar": 0.5,
        "ce_nar": 0.5,
        "ce_aux": 0.5,
        "kl_ar_aux": 0.5,
        "kl_aux_nar": 0.5,
        "kl_ar_nar": 0.0,
        "length": 0.0,
        "label_smoothing": 0.0,
        "normalize_by": "tokens",
        "masking": {"kind": "infill"},
    },
    "translation": {
        "ce_ar": 1.0,
        "ce_nar": 0.5,
        "ce_aux": 0.5,
        "kl_ar_aux": 3.0,
        "kl_aux_nar": 1.0,
        "kl_ar_nar": 1.0,
        "length": 0.1,
        "label_smoothing": 0.1,
        "normalize_by": "slots",
        "masking": {"kind": "span", "ratio": 0.7, "mean_span_length": 2.0},
    },
}
"""Defaults of JANUS (METHOD §3, §4). Other objectives take from them what their rows do not say."""
DEFAULT_RECIPE = "pretraining"


@dataclass(frozen=True)
class ObjectiveRow:
    """What is said of an objective outside its module."""

    weights: tuple[str, ...]
    """Keys of the section `objective` that weigh its terms, in the order of the terms, `length`
    last."""
    modes: tuple[str, ...]
    """Ways to decode a model that was trained on it."""
    cross_entropy_weight: float | None = 1.0
    """Default weight of each cross-entropy, divergences then having 0; None: all weights are the
    recipe's."""
    mask_kinds: Mapping[str, str] = field(default_factory=dict)
    """Recipe -> default `masking.kind`, where it is not the recipe's."""
    content_stream: bool = True
    """Whether `model.ar_stream` may be "content". Objectives that predict from mask symbols only
    need "query"."""
    causal_self_attention: bool = False
    """Whether `model.causal_self_attention` may be set: with P_NAR alone."""
    long_prefix: bool = True
    """Whether `model.target_prefix` may have more than one token. Objectives that take all tokens
    but the first for text need one."""
    label_smoothing: bool = True
    """Whether `label_smoothing` may be set."""
    no_pipeline: str | None = None
    """Why stages of a pipeline cannot train it, for the message; None: they can."""
    no_r_drop: str | None = None
    """Why it cannot be trained with R-Drop, for the message; None: it can."""
    mode_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Mode -> options that its models are decoded with in comparisons."""
    baseline_of: tuple[str, ...] = ()
    """Modes in which other objectives are compared with this one, if no baseline is named."""


JANUS_WEIGHTS = ("ce_ar", "ce_nar", "ce_aux", "kl_ar_aux", "kl_aux_nar", "kl_ar_nar", "length")
BOTH_WAYS = ("ar", "nar", "rerank", "speculative", "auto")
"""Modes of models that have P_AR and P_NAR."""

OBJECTIVES: dict[str, ObjectiveRow] = {
    "janus": ObjectiveRow(weights=JANUS_WEIGHTS, modes=BOTH_WAYS, cross_entropy_weight=None),
    "ar": ObjectiveRow(
        weights=("ce_ar",), modes=("ar",), baseline_of=("ar", "rerank", "speculative")
    ),
    "cmlm": ObjectiveRow(
        weights=("ce_nar", "length"),
        modes=("nar",),
        mask_kinds={"translation": "uniform"},
        causal_self_attention=True,
        baseline_of=("nar",),
    ),
    "cmlmc": ObjectiveRow(
        weights=("ce_nar", "ce_correction", "length"),
        modes=("nar",),
        cross_entropy_weight=0.5,  # the loss is the mean of the two
        mask_kinds={"translation": "uniform"},
        causal_self_attention=True,
        long_prefix=False,
        no_pipeline="decodes before each step, which stages of a pipeline cannot",
        no_r_drop="writes a part of its batch itself, once",
        mode_options={"nar": {"rescore_all": True}},
    ),
    "joint": ObjectiveRow(weights=("ce_ar", "ce_nar", "kl_ar_nar", "length"), modes=BOTH_WAYS),
    "ctc": ObjectiveRow(
        weights=("ce_nar",),
        modes=("ctc",),
        label_smoothing=False,
        no_r_drop="has no token for each slot, so that two predictions could be compared",
    ),
    "bang": ObjectiveRow(weights=(), modes=("ar",), content_stream=False),
    "bang_nar": ObjectiveRow(
        weights=("ce_nar",), modes=("bang_nar",), content_stream=False, long_prefix=False
    ),
}
DEFAULT_OBJECTIVE = "janus"


def weight_names() -> tuple[str, ...]:
    """Every weight that any objective has, each once."""
    return tuple(dict.fromkeys(name for row in OBJECTIVES.values() for name in row.weights))


def default_values(objective: Any, recipe: Any) -> dict[str, Any]:
    """Defaults of the section `objective`.

    The names may be anything a file can hold: a wrong one is reported as itself, and must not look
    like the absence of all that it stands for. So it gets the defaults of another."""
    known_recipe = recipe if isinstance(recipe, str) and recipe in RECIPES else DEFAULT_RECIPE
    known_name = isinstance(objective, str) and objective in OBJECTIVES
    row = OBJECTIVES[objective if known_name else DEFAULT_OBJECTIVE]
    values = dict(RECIPES[known_recipe])
    values["masking"] = dict(values["masking"])
    if known_recipe in row.mask_kinds:
        values["masking"]["kind"] = row.mask_kinds[known_recipe]
    if not row.label_smoothing:
        values["label_smoothing"] = 0.0
    if row.cross_entropy_weight is None:
        return values
    for name in weight_names():
        if name not in row.weights:
            values[name] = 0.0
        elif name.startswith("ce_"):
            values[name] = row.cross_entropy_weight
        elif name.startswith("kl_"):
            values[name] = 0.0
    return values
