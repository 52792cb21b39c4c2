"""Validate the content of a configuration: each section by itself, then what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from janus_pt.config.messages import Problem, explain, section_at
from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig
from janus_pt.config.run_schema import CheckpointConfig, RunConfig, TrackingConfig, ValidationConfig
from janus_pt.config.schema import (
    AdapterConfig,
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
)


@dataclass(frozen=True)
class Sections:
    """The sections that are valid by themselves; None: not given, or not valid."""

    model: ModelConfig | None = None
    objective: ObjectiveConfig | None = None
    data: DataConfig | None = None
    adapter: AdapterConfig | None = None
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig | None = None
    parallel: ParallelConfig | None = None
    precision: PrecisionConfig | None = None
    checkpoint: CheckpointConfig | None = None
    validation: ValidationConfig | None = None
    tracking: TrackingConfig | None = None
    run: RunConfig | None = None
    deepspeed: Mapping[str, Any] = field(default_factory=dict)


Limits = Callable[[Sections, int | None], Iterable[Problem]]
"""(sections, ranks that share a step, if known) -> problems of what the sections say together."""


def validate(
    data: Mapping[str, Any], world_size: int | None, limits: Limits
) -> tuple[Config | None, list[Problem]]:
    """The configuration, unless its content is wrong, and all problems of the content.

    `limits` are asked about the valid sections even if others are not: all problems are reported at
    once.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        sections = _valid_sections(data, error)
        return None, [*explain(error), *limits(sections, world_size)]
    return config, list(limits(Sections(**dict(config)), world_size))


def _valid_sections(data: Mapping[str, Any], error: ValidationError) -> Sections:
    wrong = {detail["loc"][0] for detail in error.errors(include_url=False)}
    valid: dict[str, Any] = {}
    for name, model_field in Config.model_fields.items():
        absent = data.get(name, model_field.default) is None
        if name in wrong or absent:
            continue
        if name == "deepspeed":
            valid[name] = data.get(name, {})
        else:
            valid[name] = section_at((name,)).model_validate(data.get(name, {}))
    return Sections(**valid)
