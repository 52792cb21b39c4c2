"""The ways to decode, and the check of their options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from janus_pt.config.schema import Section
from janus_pt.generate.autoregressive import AutoregressiveOptions, autoregressive
from janus_pt.generate.bang_nar import OnePassOptions, one_pass
from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.mask_predict import MaskPredictOptions, mask_predict
from janus_pt.generate.rerank import RerankOptions, rerank
from janus_pt.generate.speculative import SpeculativeOptions, speculative
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source
from janus_pt.utils.errors import UserError

Decoder = Callable[[JanusTransformer, Source, Any], Hypotheses]
MODES: dict[str, tuple[type[Section], Decoder]] = {
    "ar": (AutoregressiveOptions, autoregressive),
    "nar": (MaskPredictOptions, mask_predict),
    "rerank": (RerankOptions, rerank),
    "speculative": (SpeculativeOptions, speculative),
    "bang_nar": (OnePassOptions, one_pass),
}


def check_options(mode: str, /, **options: Any) -> Section:
    """The options of a mode; `UserError` for an unknown mode, and for options that it does not have or allow."""
    if mode not in MODES:
        raise UserError(f"mode: there is no {mode!r}; use one of: {', '.join(MODES)}")
    kind, _ = MODES[mode]
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        raise UserError(problem["msg"].removeprefix("Value error, "))
    name = problem["loc"][0]
    if name not in kind.model_fields:
        raise UserError(
            f'{name}: mode "{mode}" has no such option; it has {", ".join(kind.model_fields)}'
        )
    raise UserError(f"{name}: {problem['msg'].lower()}, but is {problem['input']!r}")


def check_scored_options(mode: str, /, **options: Any) -> None:
    """`check_options`, and `UserError` unless each source gets one output, which is what can be scored."""
    if (number := getattr(check_options(mode, **options), "num_return_sequences", 1)) != 1:
        raise UserError(
            f"num_return_sequences: must be 1 where outputs are scored, but is {number}"
        )
