"""Tables in text and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

ALIGNMENTS = {"l": "left", "r": "right"}


def format_table(
    rows: Iterable[Sequence[str]],
    headers: Sequence[str] = (),
    *,
    align: str = "lr",
    markdown: bool = False,
) -> str:
    """The rows below the headers, in columns as wide as their widest cell; without a line break at the end.

    Args:
        rows: cells as text, already formatted: numbers keep the digits they are given with.
        align: `l` or `r` for each column; the last letter holds for all further columns.
        markdown: with the bars of a Markdown table, else with two spaces between columns.
    """
    cells = [list(row) for row in rows]
    columns = max(map(len, [headers, *cells]))
    letters = align.ljust(columns, align[-1])[:columns]
    return tabulate(
        cells,
        headers,
        tablefmt="pipe" if markdown else "plain",
        colalign=[ALIGNMENTS[letter] for letter in letters] if cells else None,
        disable_numparse=True,
    )
