"""Checks before the model is built: ranks, run folder, corpora and weights fit the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from janus_pt.checkpoint.store import CHECKPOINTS, LATEST
from janus_pt.config.schema import DataConfig, ModelConfig, ObjectiveConfig
from janus_pt.data.corpus import Corpus, open_corpus, tokenizer_files
from janus_pt.export.checks import check_tokenizers, wrong_ids
from janus_pt.export.folder import Export, load_export
from janus_pt.parallel.consistency import check_identical, code_fingerprint
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError


def check_same_start(config_json: str) -> None:
    """Refuse ranks that were started with another configuration or code; all ranks take part.

    Raises:
        UserError: on every rank, naming the ranks that differ.
    """
    check_identical({"the configuration": config_json, "the code of janus_pt": code_fingerprint()})


def check_folder(run_folder: Path, resume: bool) -> None:
    """Refuse to write over another run.

    Raises:
        UserError: the folder holds a checkpoint, and this run does not resume.
    """
    # `latest` is written last, so a folder without it has no checkpoint to lose.
    if not resume and (run_folder / CHECKPOINTS / LATEST).exists():
        raise UserError(
            f"{run_folder} holds a run already: go on with --resume auto, or give another "
            "run.output_dir"
        )


def check_corpora(
    data: DataConfig, model: ModelConfig, objective: ObjectiveConfig
) -> Sequence[Corpus]:
    """The corpora of `data`, first those to train on.

    Raises:
        UserError: with all the reasons why they do not fit the model, the objective or each other.
    """
    # All problems of all corpora are collected, so that one start shows all of them.
    paths = [corpus.path for corpus in data.train]
    if data.valid is not None:
        paths.append(data.valid)
    corpora = [open_corpus(path, data.cache_dir) for path in paths]
    hashes = corpora[0].manifest.tokenizer_hashes
    problems: list[str] = []
    for path, corpus in zip(paths, corpora, strict=True):
        reasons = _vocabulary_problems(corpus, model) + _side_problems(corpus, objective)
        problems += [f"{path}: {reason}" for reason in reasons]
        if corpus.manifest.tokenizer_hashes != hashes:
            problems.append(
                f"{path}: was made with another tokenizer than {paths[0]}; rebuild one of them"
            )
    # All corpora have the same.
    tokenizers = [load_tokenizer(path) for path in tokenizer_files(data)]
    for name, value in wrong_ids(tokenizers[0], model).items():
        reason = (
            f"model.{name} is {getattr(model, name)}, its tokenizer has {value}; set it to {value}"
        )
        problems.append(f"{paths[0]}: {reason}")
    if problems:
        raise UserError("\n  ".join(["the corpora do not fit the configuration:", *problems]))
    check_tokenizers(tokenizers, model)
    return corpora


def _vocabulary_problems(corpus: Corpus, model: ModelConfig) -> list[str]:
    """Vocabulary sizes of the model that are not the tokenizers'."""
    manifest = corpus.manifest
    source_tokenizer = manifest.source_tokenizer
    actual = {
        "vocab_size": manifest.tokenizer.vocab_size,
        "source_vocab_size": source_tokenizer.vocab_size if source_tokenizer else None,
    }
    problems = []
    for name, size in actual.items():
        configured = getattr(model, name)
        # Two tokenizers may have one vocabulary; `check_tokenizers` compares their tokens.
        shares_vocabulary = name == "source_vocab_size" and size == manifest.tokenizer.vocab_size
        if configured != size and not (configured is None and shares_vocabulary):
            problems.append(
                f"model.{name} is {configured}, its tokenizers have {size or 'none'}; "
                f"set it to {size or 'null'}"
            )
    return problems


def _side_problems(corpus: Corpus, objective: ObjectiveConfig) -> list[str]:
    """A masking that needs texts where the corpus has pairs, or the other way round."""
    # A corpus of texts has the field `text` alone.
    has_pairs = "target" in corpus.manifest.fields
    infills = objective.masking.kind == "infill"
    if not has_pairs and not infills:
        return ['has no target side, so objective.masking.kind must be "infill"']
    if has_pairs and infills:
        return [
            'has source and target, objective.masking.kind "infill" makes the source from a text; '
            'use "span", or set objective.recipe to "translation"'
        ]
    return []


def initial_weights(
    init_from: str, model: ModelConfig, first_corpus: str, hashes: Sequence[str]
) -> Mapping[str, Tensor]:
    """The unsharded weights of the export `init_from`, by name.

    Args:
        first_corpus: path of a corpus of the run, for messages.
        hashes: of its tokenizers.

    Raises:
        UserError: its shape or its tokenizer is not this run's.
    """
    export = load_export(init_from)
    # Compared by hash: another tokenizer of the same size would give every id another meaning.
    differences = _shape_differences(export, model)
    if [tokenizer.fingerprint for tokenizer in export.tokenizers] != list(hashes):
        differences.append(f"the tokenizer ({first_corpus} has another one)")
    if differences:
        raise UserError(
            f"run.init_from: the model in {init_from} differs in {', '.join(differences)}"
        )
    return export.state


def _shape_differences(export: Export, model: ModelConfig) -> list[str]:
    theirs, ours = export.config.model_dump(), model.model_dump()
    return [
        f"model.{key} (there {theirs[key]}, here {ours[key]})"
        for key in ours
        # Dropout is a matter of training, not of the weights.
        if theirs[key] != ours[key] and "dropout" not in key
    ]
