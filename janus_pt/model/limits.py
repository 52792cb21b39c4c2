"""Problems of a model's shape, and of what is trained of it: adapters, freezing, decay of the rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from janus_pt.config.content import Sections
from janus_pt.config.messages import Problem
from janus_pt.config.parallel_schema import ParallelConfig
from janus_pt.config.schema import ROTARY_POSITIONS, AdapterConfig, ModelConfig, OptimizerConfig

if TYPE_CHECKING:
    from janus_pt.model.transformer import JanusTransformer

SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
SHARED_IDS = {("pad_token_id", "bos_token_id"), ("unk_token_id", "mask_token_id")}
"""Special tokens that may be one: Marian's targets begin with pad, and it has no mask symbol."""


def model_problems(model: ModelConfig) -> Iterator[Problem]:
    """Problems of a model's shape and of its special ids."""
    size, heads = model.hidden_size, model.num_attention_heads
    if size % heads:
        below = size - size % heads
        reason = f"must be a multiple of model.num_attention_heads ({heads}), but is {size}"
        yield ("model", "hidden_size"), f"{reason}: use {below or heads} or {below + heads}"
    if model.embedding_projection and model.scale_embedding:
        reason = "has no use with model.embedding_projection: set one of them to false"
        yield ("model", "scale_embedding"), reason
    yield from variant_problems(model)
    yield from _special_id_problems(model)


def variant_problems(model: ModelConfig) -> Iterator[Problem]:
    """Values that a kind of layer needs others for."""
    heads, key_value_heads = model.num_attention_heads, model.key_value_heads
    if heads % key_value_heads:
        reason = f"must divide model.num_attention_heads ({heads}), but is {key_value_heads}"
        yield ("model", "num_key_value_heads"), f"{reason}: use a divisor of it"
    if model.positions in ROTARY_POSITIONS:
        head_size = model.hidden_size // heads
        if head_size % 2:
            reason = f"heads of {head_size} elements cannot be rotated in pairs"
            advice = "make model.hidden_size / model.num_attention_heads even"
            yield ("model", "positions"), f'{reason} as "{model.positions}" does: {advice}'
        if model.embedding_projection:
            reason = (
                "joins the embeddings of tokens and positions; "
                f'positions "{model.positions}" have none'
            )
            yield ("model", "embedding_projection"), f"{reason}: set it to false"


def _special_id_problems(model: ModelConfig) -> Iterator[Problem]:
    owners: dict[int, str] = {}
    for name in SPECIAL_IDS:
        token = getattr(model, name)
        if token >= model.common_vocab_size:
            limit = f"must be below the size of every vocabulary ({model.common_vocab_size})"
            yield ("model", name), f"{limit}, but is {token}"
        owner = owners.setdefault(token, name)
        if owner != name and (owner, name) not in SHARED_IDS:
            reason = f"{token} is {owner} already: give each special token an id of its own"
            yield ("model", name), reason
    yield from frame_problems(model)


def frame_problems(model: ModelConfig) -> Iterator[Problem]:
    """Frames with ids of no vocabulary, or that leave no room for a text."""
    source_size = model.source_vocab_size or model.vocab_size
    limits = {
        "source_prefix": source_size,
        "source_suffix": source_size,
        "target_prefix": model.vocab_size,
    }
    for name, limit in limits.items():
        for token in getattr(model, name) or ():
            if token >= limit:
                yield ("model", name), f"must be below {limit}, the vocabulary, but has {token}"
    if model.longest_text < 1:
        reason = f"{model.max_positions} leaves no room for a text among its special tokens"
        yield ("model", "max_positions"), f"{reason}: raise it"


def trained_problems(sections: Sections) -> Iterator[Problem]:
    """Problems of the sections `adapter` and `optimizer`, by themselves and with the others."""
    model, run, parallel = sections.model, sections.run, sections.parallel
    adapter = sections.adapter
    if adapter:
        yield from _adapter_problems(adapter, parallel)
        if run and run.init_from is None:
            yield ("adapter",), "needs a model that it is put on: set run.init_from"
        if model:
            yield from _target_problems(adapter, model)
    if sections.optimizer:
        yield from _optimizer_problems(sections.optimizer, model, parallel, adapter is not None)


def _adapter_problems(adapter: AdapterConfig, parallel: ParallelConfig | None) -> Iterator[Problem]:
    if adapter.kind == "bottleneck":
        for name in sorted(adapter.model_fields_set & {"lora_alpha", "lora_dropout"}):
            yield ("adapter", name), 'is of kind "lora" only: remove it'
        if parallel and adapter.r % parallel.tensor_parallel_size:
            reason = f"must be a multiple of parallel.tensor_parallel_size ({parallel.tensor_parallel_size})"
            yield ("adapter", "r"), f"{reason}, but is {adapter.r}"
    if parallel and parallel.pipeline_parallel_size > 1:
        yield ("adapter",), "does not work with pipelines: set parallel.pipeline_parallel_size to 1"


def _target_problems(adapter: AdapterConfig, model: ModelConfig) -> Iterator[Problem]:
    # These import torch: only configurations with adapters wait for it.
    from janus_pt.model.adapters import matches, possible_layers, target_layers, trained_with
    from janus_pt.model.meta import build_on_meta

    plain_model = build_on_meta(model)
    names = [name for name, _ in plain_model.named_parameters()]
    layers = target_layers(adapter, plain_model)
    possible = dict.fromkeys(
        name.rpartition(".")[2] for name in possible_layers(adapter, plain_model)
    )
    for index, pattern in enumerate(adapter.target_modules or ()):
        if not any(matches(pattern, layer) for layer in layers):
            yield (
                ("adapter", "target_modules", index),
                f"{pattern!r} is no layer; they are called {', '.join(possible)}",
            )
    for index, pattern in enumerate(adapter.modules_to_save):
        if not any(matches(pattern, name) for name in names):
            yield ("adapter", "modules_to_save", index), _no_such(pattern, names)
    frozen = {name for name in names if not trained_with(adapter, name)}
    if problem := _lone_bias(frozen, plain_model):
        yield ("adapter", "modules_to_save"), problem


def _optimizer_problems(
    optimizer: OptimizerConfig,
    model: ModelConfig | None,
    parallel: ParallelConfig | None,
    adapted: bool,
) -> Iterator[Problem]:
    if parallel and parallel.pipeline_parallel_size > 1:
        # DeepSpeed reduces a norm for each group of the optimizer, and stages would have different
        # groups.
        reason = "does not work with pipelines: set parallel.pipeline_parallel_size to 1"
        if optimizer.freeze:
            yield ("optimizer", "freeze"), reason
        if optimizer.layer_lr_decay < 1:
            yield ("optimizer", "layer_lr_decay"), reason
    if optimizer.freeze and adapted:
        yield (
            ("optimizer", "freeze"),
            "all but the adapter is frozen already: remove one of the two",
        )
    elif optimizer.freeze and model:
        yield from _freeze_problems(optimizer.freeze, model)


def _freeze_problems(freeze: tuple[str, ...], model: ModelConfig) -> Iterator[Problem]:
    # These import torch: only configurations that freeze something wait for it.
    from janus_pt.model.adapters import matches
    from janus_pt.model.meta import build_on_meta

    plain_model = build_on_meta(model)
    names = [name for name, _ in plain_model.named_parameters()]
    for index, pattern in enumerate(freeze):
        if not any(matches(pattern, name) for name in names):
            yield ("optimizer", "freeze", index), _no_such(pattern, names)
    frozen = {name for name in names if any(matches(pattern, name) for pattern in freeze)}
    if len(frozen) == len(names):
        yield ("optimizer", "freeze"), "leaves nothing to train: remove a pattern"
    elif problem := _lone_bias(frozen, plain_model):
        yield ("optimizer", "freeze"), problem


def _lone_bias(frozen: set[str], model: JanusTransformer) -> str | None:
    """The message about a trained bias of a column layer whose weight is frozen: it would get no
    gradient."""
    from janus_pt.model.adapters import linear_layers
    from janus_pt.model.layer_factory import is_column

    for layer, module in linear_layers(model).items():
        bias = f"{layer}.bias"
        if is_column(module) and bias not in frozen and f"{layer}.weight" in frozen:
            return f"megatron-core makes no gradient for {bias} if the weight beside it is frozen: treat both the same"
    return None


def _no_such(pattern: str, names: list[str]) -> str:
    """The message about a pattern that fits no parameter."""
    parts = dict.fromkeys(
        part for name in names for part in name.split(".") if not part.isdecimal()
    )
    return f"{pattern!r} fits no parameter; use parts of their names: {', '.join(parts)}"
