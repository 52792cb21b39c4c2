"""The tasks, one row each. A new task is one more row: see docs/extending/add_a_task.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from janus_pt.utils.errors import UserError
from janus_pt.utils.suggest import did_you_mean

PARALLEL_FILES = {"src": "{split}.src", "tgt": "{split}.tgt"}
"""Two files, line by line: the fields of an example are `src` and `tgt`."""
BEAM_4 = {"num_beams": 4}
BEAM_5 = {"num_beams": 5}
MASK_PREDICT = {"iterations": 10, "length_beam": 5}


@dataclass(frozen=True)
class Task:
    """How examples are read, decoded and scored.

    Attributes:
        files: field -> file of a split, one value a line. A `.jsonl` file gives all fields of its
            objects at once.
        source, target: texts made of the fields, by `str.format`'s rules.
        max_source_tokens: a longer source is cut there.
        max_target_tokens: training pairs with a longer target are skipped; decoding stops there.
        cut_sources: whether training pairs with a longer source are cut, or skipped as well.
        metrics: names of `metrics.METRICS`.
        overall_values: the values whose mean is the task's part of a benchmark's overall score.
        decoding: mode -> default options of `JanusModel.generate`.
        folder: path of the files below the data folder, if they are not in it.
        group_by_source: whether examples with an identical source are scored as one; see
            `outputs.pair_up`.
        lowercase: whether predictions and references are compared in lower case.
        tokenizers: SentencePiece's model types for sources and targets, where one vocabulary of
            pieces for both does not suit.
    """

    files: Mapping[str, str] = field(default_factory=lambda: dict(PARALLEL_FILES))
    source: str = "{src}"
    target: str = "{tgt}"
    max_source_tokens: int = 510
    max_target_tokens: int = 128
    cut_sources: bool = True
    metrics: tuple[str, ...] = ("rouge",)
    overall_values: tuple[str, ...] = ()
    decoding: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"ar": BEAM_4, "nar": MASK_PREDICT}
    )
    folder: str = ""
    group_by_source: bool = False
    lowercase: bool = False
    tokenizers: tuple[str, str] | None = None


TRANSLATION = Task(
    max_source_tokens=254,
    max_target_tokens=254,
    # Half a sentence has no translation: a pair that is too long is skipped, not cut.
    cut_sources=False,
    metrics=("bleu", "chrf", "ter"),
    decoding={"ar": BEAM_5, "nar": MASK_PREDICT},
)

# GLGE's rows (Liu et al. 2021) have the folders, metrics and lower-casing of its own scripts.
TASKS: Mapping[str, Task] = {
    "nmt": TRANSLATION,
    "glge/cnndm": Task(
        folder="cnndm_data/org_data",
        max_target_tokens=254,
        overall_values=("rouge1", "rouge2", "rougeLsum"),
        decoding={
            "ar": {"num_beams": 5, "length_penalty": 1.2, "min_length": 45},
            "nar": MASK_PREDICT,
        },
    ),
    "glge/gigaword": Task(
        folder="gigaword_data/org_data",
        max_target_tokens=64,
        overall_values=("rouge1", "rouge2", "rougeL"),
    ),
    "glge/xsum": Task(
        folder="xsum_data/org_data",
        max_target_tokens=126,
        overall_values=("rouge1", "rouge2", "rougeL"),
    ),
    "glge/msnews": Task(
        folder="msnews_data/org_data",
        max_target_tokens=64,
        overall_values=("rouge1", "rouge2", "rougeL"),
    ),
    "glge/squad_qg": Task(
        folder="squadqg_data/org_data",
        max_target_tokens=64,
        metrics=("coco_rougeL", "bleu4", "meteor"),
        overall_values=("coco_rougeL", "bleu4", "meteor"),
        # Several questions are asked about one passage: all of them are references.
        group_by_source=True,
        lowercase=True,
    ),
    "glge/msqg": Task(
        folder="msqg_data/org_data",
        max_target_tokens=64,
        metrics=("coco_rougeL", "bleu4", "meteor"),
        overall_values=("coco_rougeL", "bleu4", "meteor"),
        group_by_source=True,
        lowercase=True,
    ),
    "glge/coqa": Task(
        folder="coqa_data/org_data",
        max_target_tokens=64,
        metrics=("coqa_f1",),
        overall_values=("coqa_f1",),
    ),
    "glge/personachat": Task(
        folder="personachat_data/org_data",
        max_target_tokens=64,
        metrics=("sentence_bleu", "distinct"),
        overall_values=("sentence_bleu1", "sentence_bleu2", "distinct1", "distinct2"),
    ),
    "fairytaleqa": Task(
        files={"all": "{split}.jsonl"},
        source="{answer1} </s> {context}",
        target="{question}",
        max_target_tokens=64,
        metrics=("rouge", "bleu4", "meteor"),
    ),
    "g2p/cmudict": Task(
        max_source_tokens=62,
        max_target_tokens=62,
        cut_sources=False,
        metrics=("exact_match", "per"),
        decoding={"ar": BEAM_5, "nar": {"iterations": 4, "length_beam": 3}},
        # A word with several pronunciations has a line for each: all of them are right.
        group_by_source=True,
        # Letters become phonemes.
        tokenizers=("char", "word"),
    ),
    # Any two files whose outputs are right or wrong, not better or worse.
    "pairs": Task(
        max_source_tokens=254,
        max_target_tokens=254,
        cut_sources=False,
        metrics=("exact_match", "wer", "cer"),
        decoding={"ar": BEAM_5, "nar": {"iterations": 4, "length_beam": 3}},
    ),
}

LANGUAGE_PAIR = re.compile(r"nmt(?P<tagged>-tagged)?/(?P<source>[\w.]+)-(?P<target>[\w.]+)")


def find_task(name: str) -> Task:
    """The row called `name`.

    `nmt/de-en` is `nmt` with files that end in the languages, `{split}.de` and `{split}.en`. In
    `nmt-tagged/de-en` each source also begins with the language that it is translated into, as in
    `<2en>`.

    Raises:
        UserError: there is no such task, or source and target are the same language.
    """
    if name in TASKS:
        return TASKS[name]
    if pair := LANGUAGE_PAIR.fullmatch(name):
        return _translation(name, pair["source"], pair["target"], tagged=bool(pair["tagged"]))
    suggestion = did_you_mean(name, TASKS)
    raise UserError(
        f"task: there is no {name!r}; {suggestion}There are: {', '.join(TASKS)}, nmt/SOURCE-TARGET"
    )


def _translation(name: str, source: str, target: str, tagged: bool) -> Task:
    """`TRANSLATION` for two languages."""
    if source == target:
        raise UserError(
            f"task: {name} has one language, so that source and target would be the same file; "
            "name two"
        )
    files = {"src": f"{{split}}.{source}", "tgt": f"{{split}}.{target}"}
    template = f"<2{target}> {{src}}" if tagged else "{src}"
    # Braces are doubled above: `{split}` and `{src}` are filled when the files are read.
    return replace(TRANSLATION, files=files, source=template)
