"""The ways to decode by name, and the check of their options."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from janus_pt.generate.auto import AutoOptions
from janus_pt.generate.autoregressive import AutoregressiveOptions
from janus_pt.generate.bang_nar import OnePassOptions
from janus_pt.generate.ctc import CTCOptions
from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.generate.mask_predict import MaskPredictOptions
from janus_pt.generate.rerank import RerankOptions
from janus_pt.generate.speculative import SpeculativeOptions
from janus_pt.utils.errors import UserError

MODES: dict[str, type[DecodingOptions]] = {
    "ar": AutoregressiveOptions,
    "nar": MaskPredictOptions,
    "rerank": RerankOptions,
    "speculative": SpeculativeOptions,
    "auto": AutoOptions,
    "bang_nar": OnePassOptions,
    "ctc": CTCOptions,
}


def check_options(mode: str, /, **values: Any) -> DecodingOptions:
    """The options of a mode, ready to decode.

    Raises:
        UserError: the mode is unknown; it does not have an option, or does not allow its value.
    """
    if mode not in MODES:
        raise UserError(f"mode: there is no {mode!r}; use one of: {', '.join(MODES)}")
    options = MODES[mode]
    try:
        return options.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    # A validator of the whole section has no place of its own: its message names the option.
    if not problem["loc"]:
        raise UserError(problem["msg"].removeprefix("Value error, "))
    name = problem["loc"][0]
    if name not in options.model_fields:
        known = ", ".join(options.model_fields)
        raise UserError(f'{name}: mode "{mode}" has no such option; it has {known}')
    raise UserError(f"{name}: {problem['msg'].lower()}, but is {problem['input']!r}")


def check_scored_options(mode: str, /, **values: Any) -> DecodingOptions:
    """`check_options`, and `UserError` unless each source gets the one output that is scored."""
    options = check_options(mode, **values)
    if options.num_outputs != 1:
        raise UserError(
            "num_return_sequences: must be 1 where outputs are scored, "
            f"but is {options.num_outputs}"
        )
    return options
