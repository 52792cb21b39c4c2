"""The tasks, one row each. A new task is one more row: see docs/guides/tasks.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from janus_pt.utils.errors import UserError

LINES = {"src": "{split}.src", "tgt": "{split}.tgt"}
"""Two files, line by line: the fields of an example are `src` and `tgt`."""
QUESTION_METRICS = ("coco_rougeL", "bleu4", "meteor")
ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Task:
    """What is read, how it is decoded, how it is scored.

    Attributes:
        files: field -> file of a split, one value a line. A `.jsonl` file gives all fields of its objects at once.
        source, target: texts made of the fields.
        max_source_tokens: a longer source is cut there.
        max_target_tokens: training pairs with a longer target are left out; decoding stops there.
        cut_sources: whether pairs with a longer source are trained on, or left out too.
        metrics: of `metrics.METRICS`.
        scores: the values that make up the task's score in a benchmark; empty: all.
        decoding: mode -> options of `JanusModel.generate`.
        folder: where the files are below the data folder, if not in it.
        group_by_source: examples with an identical source are scored as one; see `outputs.pair_up`.
        lowercase: whether predictions and references are compared in lower case.
    """

    files: Mapping[str, str] = field(default_factory=lambda: dict(LINES))
    source: str = "{src}"
    target: str = "{tgt}"
    max_source_tokens: int = 510
    max_target_tokens: int = 128
    cut_sources: bool = True
    metrics: tuple[str, ...] = ("rouge",)
    scores: tuple[str, ...] = ()
    decoding: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "ar": {"num_beams": 4},
            "nar": {"iterations": 10, "length_beam": 5},
        }
    )
    folder: str = ""
    group_by_source: bool = False
    lowercase: bool = False


TRANSLATION = Task(
    max_source_tokens=254,
    max_target_tokens=254,
    cut_sources=False,
    metrics=("bleu", "chrf", "ter"),
    decoding={"ar": {"num_beams": 5}, "nar": {"iterations": 10, "length_beam": 5}},
)


def _glge(folder: str, max_target_tokens: int, scores: tuple[str, ...], **row: Any) -> Task:
    return Task(
        folder=f"{folder}_data/org_data", max_target_tokens=max_target_tokens, scores=scores, **row
    )


TASKS: Mapping[str, Task] = {
    "nmt": TRANSLATION,
    "glge/cnndm": _glge(
        *("cnndm", 254, ("rouge1", "rouge2", "rougeLsum")),
        decoding={
            "ar": {"num_beams": 5, "length_penalty": 1.2, "min_length": 45},
            "nar": {"iterations": 10, "length_beam": 5},
        },
    ),
    "glge/gigaword": _glge("gigaword", 64, ROUGE),
    "glge/xsum": _glge("xsum", 126, ROUGE),
    "glge/msnews": _glge("msnews", 64, ROUGE),
    "glge/squad_qg": _glge(
        *("squadqg", 64, QUESTION_METRICS),
        metrics=QUESTION_METRICS,
        group_by_source=True,
        lowercase=True,
    ),
    "glge/msqg": _glge(
        "msqg", 64, QUESTION_METRICS, metrics=QUESTION_METRICS, group_by_source=True, lowercase=True
    ),
    "glge/coqa": _glge("coqa", 64, ("coqa_f1",), metrics=("coqa_f1",)),
    "glge/personachat": _glge(
        *("personachat", 64, ("sentence_bleu1", "sentence_bleu2", "distinct1", "distinct2")),
        metrics=("sentence_bleu", "distinct"),
    ),
    "fairytaleqa": Task(
        files={"all": "{split}.jsonl"},
        source="{answer1} </s> {context}",
        target="{question}",
        max_target_tokens=64,
        metrics=("rouge", "bleu4", "meteor"),
    ),
}

LANGUAGES = re.compile(r"nmt(?P<tagged>-tagged)?/(?P<source>[\w.]+)-(?P<target>[\w.]+)")


def find_task(name: str) -> Task:
    """The row called `name`.

    `nmt/de-en` is `nmt` with files that end in the languages, `{split}.de` and `{split}.en`; in `nmt-tagged/de-en`
    each source also begins with the language it is to be translated into, as in `<2en>`.

    Raises:
        UserError: there is no such task, or its two languages are one.
    """
    if name in TASKS:
        return TASKS[name]
    if pair := LANGUAGES.fullmatch(name):
        if pair["source"] == pair["target"]:
            raise UserError(
                f"task: {name} has one language, whose files would be source and target alike; name two"
            )
        files = {"src": f"{{split}}.{pair['source']}", "tgt": f"{{split}}.{pair['target']}"}
        source = f"<2{pair['target']}> {{src}}" if pair["tagged"] else "{src}"
        return replace(TRANSLATION, files=files, source=source)
    near = get_close_matches(name, TASKS, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"task: there is no {name!r}; {meant}There are: {', '.join(TASKS)}, nmt/SOURCE-TARGET"
    )
