"""What a model says of one made-up sentence: stored with a checkpoint, and compared when it has been loaded.

Hashes say that the files are those that were written; this says that what was loaded from them is the model, on
whatever layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from janus_pt.config.schema import Config
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.train.step import evaluate, report
from janus_pt.utils.errors import UserError

TOKENS = 16
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative: another layout adds in another order."""


def fingerprint(config: Config, engine: Any, fields: tuple[str, ...]) -> float:
    """The loss of the sentence, dropout off; all ranks take part. Waits for the device.

    Args:
        fields: of the corpus's samples.
    """
    rng = np.random.default_rng(0)
    length = min(TOKENS, config.model.max_positions - 2)
    tokens = rng.integers(0, config.model.common_vocab_size, length)
    sample: dict[str, Any] = {name: tokens for name in fields}
    example = make_example(sample, rng, model=config.model, objective=config.objective)
    batch = collate_examples([example], config.objective)
    return report(engine.module.loss, evaluate(engine, [batch]))["loss/total"]


def check_fingerprint(saved: float, loaded: float, dtype: str, origin: str) -> None:
    """Raise `UserError` if the loaded model is not the one that was saved in `origin`."""
    if not abs(loaded - saved) <= TOLERANCE[dtype] * abs(saved):
        raise UserError(
            f"{origin}: its files are whole, but the model loaded from them gives a loss of {loaded:.6g} where "
            f"{saved:.6g} was saved; it was written by another version of janus_pt, or for another configuration"
        )
