"""The page of a comparison, made of its `claims.json` alone: tables, curves, outputs side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from janus_pt.utils.extras import require

TEMPLATES = Path(__file__).parent
SVG_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "janus_pt"}
"""Text stays text, and equal pictures are equal files."""
AXES = {"updates": "update", "minutes": "minutes of training"}

Part = tuple[str, bool]
"""A piece of an output, and whether it differs from the reference."""


def render(content: Mapping[str, Any]) -> str:
    """The page as HTML; the same for the same `content`, which `claims.json` holds."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Outputs of models may be anything.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = marked
    environment.filters["mean"] = _mean
    template = environment.get_template("page.html")
    pictures = [curves_svg(content["curves"], value) for value in curve_names(content)]
    return template.render(**content, pictures=pictures)


def curve_names(content: Mapping[str, Any]) -> list[str]:
    """Values that get a picture: the metric, where validation decodes, and the losses of P_AR and P_NAR."""
    wanted = [content["metric"], "loss/ar", "loss/nar"]
    curves = content["curves"]
    return [name for name in wanted if any(name in curve["values"] for curve in curves)]


def curves_svg(curves: Sequence[Mapping[str, Any]], value: str) -> str:
    """A value of all validations, over updates and over time; a colour a system, a line a seed."""
    matplotlib = require("matplotlib", "plots")
    figure_class = require("matplotlib.figure", "plots").Figure
    with matplotlib.rc_context(SVG_SETTINGS):
        figure = figure_class(figsize=(11, 4), layout="constrained")
        panels = figure.subplots(1, len(AXES))
        systems = list(dict.fromkeys(curve["system"] for curve in curves))
        for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
            named: set[str] = set()
            for curve in curves:
                values = curve["values"].get(value)
                if values is None:
                    continue
                system = curve["system"]
                # One entry in the legend for all seeds of a system.
                entry = None if system in named else system
                named.add(system)
                colour = f"C{systems.index(system) % 10}"
                panel.plot(curve[axis], values, marker=".", color=colour, label=entry)
            panel.set_xlabel(label)
            panel.set_ylabel(f"validation {value}")
            panel.grid(alpha=0.25)
            panel.legend(frameon=False)
        picture = io.StringIO()
        # The date would make every page another one.
        figure.savefig(picture, format="svg", metadata={"Date": None})
    # In a page the element stands alone, without its XML declaration.
    text = picture.getvalue()
    return text[text.index("<svg") :]


def marked(output: str, references: Sequence[str]) -> list[Part]:
    """The words of an output in runs: what the nearest reference has in order, and what it has not.

    A gap, where words of the reference are missing, is a run of its own, marked "∅".
    """
    words = output.split()
    matchers = [SequenceMatcher(None, text.split(), words, autojunk=False) for text in references]
    nearest = max(matchers, key=SequenceMatcher.ratio)
    parts: list[Part] = []
    for operation, _, _, start, stop in nearest.get_opcodes():
        text = " ".join(words[start:stop]) or "∅"
        parts.append((text, operation != "equal"))
    return parts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
