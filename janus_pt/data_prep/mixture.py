"""Weights of several corpora for one training, by temperature: small ones are read more often than their share.

    janus-pt prep mixture --temperature 5 corpora/de_en corpora/fi_en corpora/is_en

A corpus of n samples gets a weight in proportion to n^(1/T): T = 1 is in proportion to size, and a large T makes all
equal (Arivazhagan et al. 2019, who take 5). Prints `data.train` of a training's configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from tabulate import tabulate

from janus_pt.data.manifest import read_manifest
from janus_pt.utils.errors import UserError


def temperature_weights(sizes: Sequence[int], temperature: float) -> list[float]:
    """Weights that sum to 1, in proportion to the sizes to the power of 1 / temperature."""
    # Of shares, since sizes to a power may be too large for a float.
    total = sum(sizes)
    powers = [(size / total) ** (1.0 / temperature) for size in sizes]
    return [power / sum(powers) for power in powers]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep mixture`."""
    parser.add_argument("corpora", nargs="+", metavar="CORPUS", help="folder or URL of each corpus")
    parser.add_argument(
        "--temperature",
        type=float,
        default=5.0,
        help="1: by size; large: equal (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the weights. `UserError` if a corpus cannot be read or has no samples."""
    # Written so that it also refuses a value that is no number.
    if not args.temperature >= 1.0:
        raise UserError(f"--temperature must be at least 1, not {args.temperature}")
    sizes = [read_manifest(corpus).samples for corpus in args.corpora]
    for corpus, size in zip(args.corpora, sizes, strict=True):
        if not size:
            raise UserError(f"{corpus}: has no samples; remove it from the mixture")
    weights = temperature_weights(sizes, args.temperature)
    rows = []
    for corpus, size, weight in zip(args.corpora, sizes, weights, strict=True):
        # How often it is read while the mixture is read as often as all corpora together have samples.
        epochs = weight * sum(sizes) / size
        rows.append(
            [corpus, f"{size:,}", f"{size / sum(sizes):.3f}", f"{weight:.3f}", f"{epochs:.2f}"]
        )
    headers = ["corpus", "samples", "share", "weight", "epochs of one reading"]
    print(tabulate(rows, headers=headers, disable_numparse=True), file=sys.stderr)
    entries = [
        {"path": corpus, "weight": round(weight, 6)}
        for corpus, weight in zip(args.corpora, weights, strict=True)
    ]
    print(json.dumps({"data": {"train": entries}}, indent=2))
