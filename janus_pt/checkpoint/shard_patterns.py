"""How DeepSpeed's converter joins the shards of each parameter, from the marks on the parameters."""

from __future__ import annotations

import re

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.layer_factory import partition_dim
from janus_pt.model.meta import build_on_meta


def shard_patterns(config: ModelConfig, adapter: AdapterConfig | None) -> dict[str, list[str]]:
    """Patterns of names for `universal_checkpoint_info`; one for each kind of parameter.

    Parameters that no pattern matches are joined along dimension 0. Those that every rank holds whole
    are averaged, since on a GPU the copies may differ in the last bits.
    """
    # Layers of a stack differ in their number only. An adapter may be on any of them: here it is on all.
    one_layer_each = config.model_copy(update={"encoder_layers": 1, "decoder_layers": 1})
    if adapter is not None:
        adapter = adapter.model_copy(update={"target_modules": ("*",)})
    row_parallel = []
    replicated = []
    for name, parameter in build_on_meta(one_layer_each, adapter).named_parameters():
        dimension = partition_dim(parameter)
        if dimension is None:
            replicated.append(_pattern(name))
        elif dimension == 1:
            row_parallel.append(_pattern(name))
        else:
            # DeepSpeed joins along dimension 0 whatever no pattern names.
            assert dimension == 0, f"{name}: DeepSpeed joins shards along dimension 0 or 1 only"
    return {
        "parameter_with_row_parallelism_patterns": row_parallel,
        "parameter_to_average_patterns": replicated,
    }


def _pattern(name: str) -> str:
    """Matches this parameter in any layer, behind the name of a stage (`3.model.`) or none (`model.`)."""
    escaped = re.escape(name).replace(r"layers\.0\.", r"layers\.\d+\.")
    # The converter uses `re.match`, and refuses a name that two patterns match.
    return rf"(\d+\.)?model\.{escaped}$"
