"""What computes the passes of decoding in place of a model's modules."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from janus_pt.model.kv_cache import LayerCache


class BestTokens(NamedTuple):
    """The best tokens after some rows, and log-probabilities, which are of all tokens.

    Attributes:
        tokens: of equal scores the first one.
        scores: theirs.
        ends: eos's.
    """

    tokens: Tensor
    scores: Tensor
    ends: Tensor


class NativePasses(Protocol):
    """Passes of one model; `inference/native` has them for a CPU."""

    def encode(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Encoder output `[rows, source, hidden]`; `mask [rows, source]` is true where there is no padding."""

    def decode_step(
        self,
        tokens: Tensor,
        positions: Tensor,
        num_content: int,
        self_mask: Tensor | None,
        cross_mask: Tensor | None,
        caches: list[LayerCache],
    ) -> Tensor:
        """As `JanusTransformer.decode_step`."""

    def best_tokens(self, hidden: Tensor, forbidden: Tensor, eos: int) -> BestTokens:
        """For each of `hidden [rows, hidden]`, `[rows]`; none that is true in `forbidden [vocab]`."""
