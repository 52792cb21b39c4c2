"""The model card of an export: `README.md` with the front matter that Hugging Face's hub reads.

By a template: `huggingface_hub.ModelCard` would save the few lines that write the front matter, and
be one more library that every training needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from janus_pt.config.exported import (
    ADAPTER_CONFIG,
    AdapterExportConfig,
    read_description,
    read_export_config,
)
from janus_pt.config.objectives import OBJECTIVES
from janus_pt.config.origin import CARD, FENCE, KEY, Origin, read_origin
from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.generate.modes import MODES
from janus_pt.model.meta import full_shapes
from janus_pt.utils.files import write_atomically
from janus_pt.utils.tables import format_table

UNKNOWN = "not recorded"
TEMPLATE = """\
# {title}

{summary}

## Model

{model}

## Training

{training}

{corpora}

## Evaluation

{evaluation}

## Decoding

{decoding}

## Licence

{license}
"""
DECODING = """\
```python
from janus_pt import JanusModel

model = JanusModel.from_pretrained("this folder")
print(model.generate(["a text"], mode="{mode}")[0].text)
```

Defaults:

{defaults}"""
TRANSFORMERS_DECODING = """\
```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
print(tokenizer.batch_decode(model.generate(**tokenizer(["a text"], return_tensors="pt"))))
```

Left to right only. Defaults are in `generation_config.json`."""


def model_card(
    config: ModelConfig,
    origin: Origin,
    adapter: AdapterConfig | None = None,
    library: Literal["janus_pt", "transformers"] = "janus_pt",
) -> str:
    """The whole file. The same model and origin give the same text.

    Args:
        adapter: of a folder that holds adapters alone.
        library: which loads the folder.
    """
    values = _front_matter(origin, library)
    front_matter = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    body = TEMPLATE.format(
        title=_title(origin, adapter),
        summary=_summary(origin),
        model=_table(_shape(config, adapter)),
        training=_table(_training(origin)),
        corpora=_corpora(origin),
        evaluation=_table(_numbers(origin.evaluation)) or f"{UNKNOWN.capitalize()}.",
        decoding=_decoding(origin) if library == "janus_pt" else TRANSFORMERS_DECODING,
        license=_license(origin),
    )
    return f"{FENCE}{front_matter}{FENCE}\n{body}"


def add_evaluation(folder: str | Path, scores: Mapping[str, float]) -> None:
    """Write the card of an exported model, or of adapters, anew with these scores.

    What else people have written into it is lost.
    """
    config, adapter = _described(Path(folder))
    origin = read_origin(folder)
    evaluation = {**origin.evaluation, **scores}
    card = model_card(config, origin.model_copy(update={"evaluation": evaluation}), adapter)
    write_atomically(Path(folder, CARD), card)


def _described(folder: Path) -> tuple[ModelConfig, AdapterConfig | None]:
    """Shape of the model in a folder, and of its adapters where it has these alone."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return read_export_config(folder).model, None
    description = read_description(folder / ADAPTER_CONFIG, AdapterExportConfig)
    base = read_export_config(folder / description.base_model_name_or_path)
    return base.model, description.adapter


def _front_matter(origin: Origin, library: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text2text-generation",
        "tags": ["janus_pt", "encoder-decoder", "non-autoregressive"],
    }
    if origin.base_model:
        values["base_model"] = origin.base_model
    if origin.license:
        values["license"] = origin.license
    known = origin.model_dump(mode="json", exclude_defaults=True)
    return {**values, KEY: known}


def _title(origin: Origin, adapter: AdapterConfig | None) -> str:
    objective = origin.objective or "sequence-to-sequence"
    return f"{objective} adapters" if adapter else f"{objective} model"


def _summary(origin: Origin) -> str:
    text = "An encoder-decoder Transformer, trained or converted with janus_pt."
    if origin.base_model:
        text += f" It began with the weights of {origin.base_model}."
    return text


def _shape(config: ModelConfig, adapter: AdapterConfig | None) -> list[tuple[str, str]]:
    shapes = full_shapes(config)
    parameters = sum(shape.numel() for shape in shapes.values())
    rows = [
        ("parameters", f"{parameters:,}"),
        ("layers", f"{config.encoder_layers} encoder, {config.decoder_layers} decoder"),
        ("hidden size", str(config.hidden_size)),
        ("vocabulary", str(config.vocab_size)),
        ("positions", str(config.max_positions)),
    ]
    if config.source_vocab_size is not None:
        rows.append(("source vocabulary", str(config.source_vocab_size)))
    if adapter is not None:
        rows.append(("adapters", f"{adapter.kind} on this base"))
    return rows


def _training(origin: Origin) -> list[tuple[str, str]]:
    steps = ", ".join(f"{step:,}" for step in origin.steps)
    mean = f"the mean of the checkpoints after {steps}"
    began = "new weights" if origin.steps else UNKNOWN
    if origin.init_from_sha256:
        began = f"the weights with the sha256 {origin.init_from_sha256}"
    return [
        ("objective", origin.objective or UNKNOWN),
        ("updates", (mean if len(origin.steps) > 1 else steps) or UNKNOWN),
        ("began with", began),
        *_numbers(origin.losses),
    ]


def _corpora(origin: Origin) -> str:
    rows = []
    for corpus in origin.corpora:
        counts = (corpus.samples, corpus.tokens)
        cells = (UNKNOWN if count is None else f"{count:,}" for count in counts)
        rows.append([corpus.name, *cells, corpus.fingerprint or UNKNOWN])
    if not rows:
        return f"Corpora: {UNKNOWN}."
    headers = ["corpus", "samples", "tokens", "fingerprint (sha256)"]
    return format_table(rows, headers, align="lrrl", markdown=True)


def _numbers(values: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{value:.4g}") for name, value in values.items()]


def _decoding(origin: Origin) -> str:
    modes = OBJECTIVES[origin.objective].modes if origin.objective in OBJECTIVES else tuple(MODES)
    defaults = _table((f"`{mode}`", _defaults(mode)) for mode in modes)
    return DECODING.format(mode=modes[0], defaults=defaults)


def _defaults(mode: str) -> str:
    fields = MODES[mode].model_fields.items()
    # None and False say that something is off.
    given = [(name, field.default) for name, field in fields if field.default]
    return ", ".join(f"`{name}={value}`" for name, value in given)


def _license(origin: Origin) -> str:
    if origin.license:
        return f"The model it was converted from, {origin.base_model}, has the licence {origin.license}."
    return "Whoever trained this model has not stated one here."


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = list(rows)
    return format_table(cells, ["", ""], align="ll", markdown=True) if cells else ""
