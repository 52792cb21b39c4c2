"""The model's loss on one made-up sentence: stored with a checkpoint, and compared after loading.

Hashes show that the files are those that were written. This shows that the model loaded from them
is the model that was saved, on whatever layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.parallel.engine import Engine
from janus_pt.train.step import evaluate, report
from janus_pt.utils.errors import UserError

TOKENS = 16
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative: another layout adds in another order."""


def fingerprint(engine: Engine, fields: Sequence[str]) -> float:
    """The loss of the sentence, without dropout; all ranks take part. Waits for the device.

    Args:
        fields: names of a sample's texts in the corpus.
    """
    model, objective = engine.module.model.config, engine.module.loss.objective
    # The same random numbers in the life of a run, on all ranks: sentence and masking do not change.
    rng = np.random.default_rng(0)
    length = min(TOKENS, model.longest_text)
    tokens = rng.integers(0, model.common_vocab_size, length)
    example = make_example({name: tokens for name in fields}, rng, model=model, objective=objective)
    batch = collate_examples([example], objective)
    losses = report(engine.module.loss, evaluate(engine, [batch]))
    return losses["loss/total"]


def check_fingerprint(saved: float, loaded: float, dtype: str, origin: str) -> None:
    """Refuse a loaded model that is not the one that was saved in `origin`.

    Raises:
        UserError: the losses differ by more than rounding.
    """
    # "Not at most" instead of "greater": a NaN is refused too.
    if not abs(loaded - saved) <= TOLERANCE[dtype] * abs(saved):
        raise UserError(
            f"{origin}: its files are whole, but the model loaded from them gives a loss of "
            f"{loaded:.6g} where {saved:.6g} was saved; it was written by another version of "
            "janus_pt, or for another configuration"
        )
