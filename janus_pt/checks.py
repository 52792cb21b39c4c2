"""What is wrong with a configuration, said in the words of its JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, get_args

from pydantic import ValidationError

from janus_pt.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    Section,
    padded_vocab_size,
)
from janus_pt.model.limits import trained_problems
from janus_pt.objectives.limits import objective_problems
from janus_pt.parallel.deepspeed_config import clashes
from janus_pt.tasks.limits import validation_problems
from janus_pt.utils.suggest import nearest

KeyPath = tuple[str | int, ...]
"""Where a value is: the keys and list indices that lead to it."""
Problem = tuple[KeyPath, str]
MAX_REPORTED = 50
"""Problems told at once: enough for any honest file, and a bound for any other."""

REQUIRED = "is required: add it"
EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
}
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def find_problems(data: dict[str, Any], world_size: int | None) -> list[Problem]:
    """Everything wrong with the content of a configuration; empty if it is a good one.

    Combinations are checked as far as the sections they involve are valid by themselves.
    `world_size` is the number of ranks that share a step; None leaves that check out."""
    try:
        return list(_combinations(dict(Config.model_validate(data)), world_size))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    found = list(islice(_translate(errors), MAX_REPORTED))
    wrong = {error["loc"][0] for error in errors}
    valid = {
        name: _section((name,)).model_validate(data.get(name, {}))
        for name, field in Config.model_fields.items()
        if name not in wrong and name != "deepspeed" and data.get(name, field.default) is not None
    }
    if "deepspeed" not in wrong:
        valid["deepspeed"] = data.get("deepspeed", {})
    return found + list(_combinations(valid, world_size))


def _translate(errors: Sequence[Any]) -> Iterator[Problem]:
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"][
        :MAX_REPORTED
    ]
    meant = {(*path[:-1], _nearest(path)) for path in unknown}
    above = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    for error in errors:
        path = error["loc"]
        consequence = path in above or (error["type"] == "missing" and path in meant)
        if not consequence:
            yield path, _reason(path, error)


def _reason(path: KeyPath, error: Any) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing" and isinstance(path[-1], str):
        return REQUIRED
    if kind == "missing":
        return f"the list needs an item {path[-1]}, but has {len(given)}"
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind]}, got {_show(given)}{_hint(kind, given)}"
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"must be {words} {error['ctx'][key]:g}, but is {_show(given)}"
    if kind == "literal_error":
        expected = error["ctx"]["expected"].replace("'", '"')
        return f"must be {expected}, but is {_show(given)}"
    if kind in ("too_short", "too_long"):
        words, limit = (
            ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        )
        return f"needs {words} {error['ctx'][limit]} items, but has {error['ctx']['actual_length']}"
    return str(error["msg"])


def _hint(kind: str, given: Any) -> str:
    """How to turn the value given into the one that was probably meant."""
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return f": write {int(given)}"
    if kind == "string_type" and isinstance(given, int | float):
        return ": write it in quotes"
    literal = {
        "bool_type": r"true|false",
        "int_type": r"-?\d+",
        "float_type": r"-?\d+(\.\d+)?([eE][-+]?\d+)?",
    }.get(kind)
    if literal and isinstance(given, str) and re.fullmatch(literal, given):
        return ": write it without quotes"
    return ""


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown_key(path: KeyPath) -> str:
    key = str(path[-1])
    if homes := list(_homes(key, Config)):
        return f"unknown key here; it belongs in {' or '.join(homes)}"
    if nearest := _nearest(path):
        return f'unknown key; did you mean "{nearest}"?'
    return f"unknown key; remove it or use one of: {', '.join(_section(path[:-1]).model_fields)}"


def _homes(key: str, section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted names of every key called `key`."""
    for name, field in section.model_fields.items():
        if name == key:
            yield prefix + name
        yield from _homes(key, _inner(field.annotation), f"{prefix}{name}.")


def _nearest(path: KeyPath) -> str | None:
    """The valid key that is spelt most like the last one of `path`."""
    return nearest(str(path[-1]), _section(path[:-1]).model_fields)


def _section(path: KeyPath) -> type[Section]:
    """The section that describes the object at `path`; one without keys where the object is free."""
    section: type[Section] = Config
    for key in path:
        if isinstance(key, str):
            section = _inner(section.model_fields[key].annotation)
    return section


def _inner(annotation: Any) -> type[Section]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (_inner(argument) for argument in get_args(annotation) if argument is not ...)
    return next((section for section in inner if section is not Section), Section)


def _combinations(valid: dict[str, Any], world_size: int | None) -> Iterator[Problem]:
    """Sections that are fine alone but not together; `valid` has the sections to look at."""
    model, data, schedule, run = (valid.get(name) for name in ("model", "data", "schedule", "run"))
    if model:
        yield from _model_problems(model)
    parallel = valid.get("parallel")
    if parallel:
        layout = list(_layout_problems(parallel, model, valid.get("precision"), world_size))
        yield from layout
        if data and not layout:
            ranks = world_size // parallel.model_parallel_size if world_size else None
            yield from _batch_problems(data, ranks)
    if "objective" in valid:
        yield from objective_problems(valid["objective"], model, parallel)
    if schedule and run and schedule.warmup_steps > run.max_steps:
        reason = f"{schedule.warmup_steps} warm-up steps do not fit in run.max_steps, which is {run.max_steps}"
        yield ("schedule", "warmup_steps"), f"{reason}: lower one or raise the other"
    if schedule and "optimizer" in valid and schedule.final_lr > valid["optimizer"].lr:
        yield (
            ("schedule", "final_lr"),
            f"must be at most optimizer.lr ({valid['optimizer'].lr:g}): the rate only falls",
        )
    if data and run and run.eval_every and not data.valid:
        yield ("run", "eval_every"), "needs a validation corpus: set data.valid, or eval_every to 0"
    yield from trained_problems(valid)
    yield from validation_problems(valid)
    for path, reason in clashes(valid.get("deepspeed", {})):
        yield ("deepspeed", *path), reason


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
    size, heads = model.hidden_size, model.num_attention_heads
    if size % heads:
        below = size - size % heads
        reason = f"must be a multiple of model.num_attention_heads ({heads}), but is {size}"
        yield ("model", "hidden_size"), f"{reason}: use {below or heads} or {below + heads}"
    if model.embedding_projection and model.scale_embedding:
        yield (
            ("model", "scale_embedding"),
            "has no use with model.embedding_projection: set one of them to false",
        )
    owners: dict[int, str] = {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "mask_token_id"):
        token = getattr(model, name)
        if token >= model.common_vocab_size:
            reason = f"must be below the size of every vocabulary ({model.common_vocab_size})"
            yield ("model", name), f"{reason}, but is {token}"
        if owners.setdefault(token, name) != name:
            yield (
                ("model", name),
                f"{token} is {owners[token]} already: give each special token an id of its own",
            )


def _layout_problems(
    parallel: ParallelConfig,
    model: ModelConfig | None,
    precision: PrecisionConfig | None,
    world_size: int | None,
) -> Iterator[Problem]:
    """Layouts that cannot be, or that DeepSpeed would compute wrongly."""
    tensor, pipeline, stage = (
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        parallel.zero_stage,
    )
    if world_size and world_size % parallel.model_parallel_size:
        reason = (
            f"a model spread over {tensor} tensor-parallel times {pipeline} pipeline-parallel ranks"
        )
        yield (
            ("parallel",),
            f"{reason} does not fit {world_size} processes: start a multiple of {tensor * pipeline}",
        )
    if model:
        yield from _split_problems(tensor, pipeline, model)
    if pipeline > 1 and stage != 1:
        reason = {0: "clips by a wrong gradient norm there, without an error"}.get(
            stage, "has no pipelines with it"
        )
        yield (
            ("parallel", "zero_stage"),
            f"must be 1 with pipeline_parallel_size above 1, but is {stage}: DeepSpeed {reason}",
        )
    if pipeline > 1 and parallel.offload_optimizer:
        yield (
            ("parallel", "offload_optimizer"),
            "pipelines keep the optimizer state on the device: set it to false",
        )
    if stage == 0 and tensor > 1 and precision and precision.dtype == "bfloat16":
        reason = (
            "with bfloat16 and tensor_parallel_size above 1 DeepSpeed reports a wrong gradient norm"
        )
        yield ("parallel", "zero_stage"), f"{reason} at stage 0: use 1"
    if parallel.offload_optimizer and stage == 0:
        yield ("parallel", "offload_optimizer"), "needs zero_stage 1 or higher, but that is 0"
    if parallel.offload_parameters and stage != 3:
        yield ("parallel", "offload_parameters"), f"needs zero_stage 3, but that is {stage}"


def _split_problems(tensor: int, pipeline: int, model: ModelConfig) -> Iterator[Problem]:
    path: KeyPath = ("parallel", "tensor_parallel_size")
    for name in ("num_attention_heads", "ffn_hidden_size"):
        if getattr(model, name) % tensor:
            yield (
                path,
                f"{tensor} does not divide model.{name} ({getattr(model, name)}): use a divisor of it",
            )
    for size in filter(None, (model.vocab_size, model.source_vocab_size)):
        if padded_vocab_size(size, tensor) - size >= padded_vocab_size(size, tensor) // tensor:
            yield (
                path,
                f"a vocabulary of {size} leaves some of {tensor} ranks without a token: use fewer",
            )
    layers = model.encoder_layers + model.decoder_layers
    if pipeline > layers:
        reason = f"{pipeline} stages cannot share {layers} layers (model.encoder_layers + model.decoder_layers)"
        yield ("parallel", "pipeline_parallel_size"), f"{reason}: use at most {layers}"


def _batch_problems(data: DataConfig, world_size: int | None) -> Iterator[Problem]:
    batch, micro = data.global_batch_size, data.micro_batch_size
    path: KeyPath = ("data", "global_batch_size")
    if batch % micro:
        nearest = max(micro, batch - batch % micro)
        yield (
            path,
            f"must be a multiple of data.micro_batch_size ({micro}), but is {batch}: use {nearest}",
        )
    elif world_size and batch // micro % world_size:
        reason = (
            f"a step of {batch // micro} micro-batches of {micro} "
            f"cannot be shared by {world_size} data-parallel ranks"
        )
        yield path, f"{reason}: use a multiple of {micro * world_size}"
