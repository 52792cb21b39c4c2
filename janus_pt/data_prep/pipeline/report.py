"""What was read, what was removed and why: `report.json`, and `report.html` with samples of the removed text."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_pt.data.manifest import Manifest
from janus_pt.data_prep.pipeline import contamination, removed
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.utils.files import write_atomically

JSON_NAME = "report.json"
HTML_NAME = "report.html"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
article { border-left: 3px solid #ccc; margin: .8rem 0; padding: .1rem .8rem; }
article header { color: #666; font-size: 12px; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; margin: .2rem 0; }
"""


def write_report(config: CorpusBuildConfig, manifest: Manifest) -> None:
    """Write both files into the corpus folder."""
    work, output = Path(config.work_folder), Path(config.output)
    filters = collect(work, config.removed_samples)
    counts = {name: entry["counts"] for name, entry in filters.items()}
    contaminated = list(_contaminated(work))
    content = {
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "skipped_lines": manifest.skipped,
        "removed": counts,
        "contaminated": contaminated,
        "recipe": manifest.recipe.model_dump() if manifest.recipe else None,
    }
    write_atomically(output / JSON_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomically(output / HTML_NAME, _page(config, manifest, filters))


def collect(work: Path, samples: int) -> dict[str, dict[str, Any]]:
    """By filter: how many texts went for each reason, and at most `samples` of each, from all tasks."""
    filters: dict[str, dict[str, Any]] = {}
    for path in sorted((work / removed.FOLDER).glob("*/*.json")):
        part = json.loads(path.read_text())
        entry = filters.setdefault(path.parent.name, {"counts": {}, "samples": {}})
        for reason, count in part["counts"].items():
            entry["counts"][reason] = entry["counts"].get(reason, 0) + count
        for reason, texts in part["samples"].items():
            kept = entry["samples"].setdefault(reason, [])
            kept += texts[: samples - len(kept)]
    return filters


def _contaminated(work: Path) -> Iterator[dict[str, str]]:
    """Every document that shares words with a test set."""
    for path in sorted((work / contamination.LIST_FOLDER).glob("*.json")):
        for document, test, words in json.loads(path.read_text()):
            yield {"document": document, "test": test, "words": words}


def _page(config: CorpusBuildConfig, manifest: Manifest, filters: dict[str, dict[str, Any]]) -> str:
    title = f"Corpus {html.escape(Path(config.output).name)}"
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(reason)}</td><td class=n>{count:,}</td></tr>"
        for name, entry in filters.items()
        for reason, count in sorted(entry["counts"].items(), key=lambda pair: -pair[1])
    ]
    tokens = ", ".join(f"{count:,} {name} tokens" for name, count in manifest.tokens.items())
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{manifest.samples:,} samples, {tokens}, {len(manifest.shards):,} shards; ",
        f"{manifest.skipped:,} input lines skipped. Fingerprint <code>{manifest.fingerprint}</code></p>",
        "<h2>Removed</h2><table><tr><th>filter<th>reason<th>removed</tr>",
        *(rows or ["<tr><td colspan=3>nothing</td></tr>"]),
        "</table>",
    ]
    for name, entry in filters.items():
        for reason, texts in entry["samples"].items():
            parts.append(f"<h2>{html.escape(name)}: {html.escape(reason)}</h2>")
            parts += map(_article, texts)
    return "\n".join(parts) + "</html>\n"


def _article(text: dict[str, str]) -> str:
    """One removed text; every part of it is escaped, since it comes from the web."""
    about = [text["id"]]
    if "contaminated_words" in text:
        about.append(f"{text['contaminated_by']}: {text['contaminated_words']}")
    body = text["text"]
    if "target" in text:
        body = f"{body}\n{text['target']}"
    header = html.escape(" · ".join(about))
    return f"<article><header>{header}</header><pre>{html.escape(body)}</pre></article>"
