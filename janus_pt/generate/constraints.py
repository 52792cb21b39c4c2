"""Which tokens must not be written: special symbols, an end too early or too late, an n-gram again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.model.native import BestTokens


def forbidden_in_ar(config: ModelConfig) -> list[int]:
    """Symbols that P_AR must not write; eos is not one, since it ends the output."""
    symbols = {config.pad_token_id, config.bos_token_id, config.mask_token_id}
    # unk is an ordinary output of P_AR, also in models where it serves as the mask symbol.
    return sorted(symbols - {config.unk_token_id})


def forbidden_in_nar(config: ModelConfig) -> list[int]:
    """Symbols that P_NAR must not write: all special ones, since its outputs have a known length."""
    symbols = {
        config.pad_token_id,
        config.bos_token_id,
        config.eos_token_id,
        config.unk_token_id,
        config.mask_token_id,
        *config.target_frame.prefix,
    }
    return sorted(symbols)


def ids_on(device: torch.device, ids: Iterable[int]) -> Tensor:
    """Token ids `[n]` on `device`, written there: a list would be copied, for which the host waits."""
    ids = list(ids)
    tensor = torch.empty(len(ids), dtype=torch.int64, device=device)
    for place, token in enumerate(ids):
        tensor[place].fill_(token)
    return tensor


def vocabulary_mask(ids: Iterable[int], vocab_size: int, device: torch.device) -> Tensor:
    """Boolean `[vocab]`, true at `ids`."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    for token in ids:
        mask[token].fill_(True)
    return mask


def allow_end(best: BestTokens, written: Tensor, shortest: int, eos: int) -> BestTokens:
    """The best tokens with eos among them, once `shortest` tokens are written.

    Args:
        best: of the other tokens, `[rows, block]`.
        written: tokens before the first of a row, `[rows]`.
    """
    tokens, scores, ends = best
    step = written[:, None] + torch.arange(tokens.shape[1], device=written.device)
    # Of equal scores the first token is taken.
    is_better = (ends > scores) | ((ends == scores) & (tokens > eos))
    is_end = is_better & (step >= shortest)
    return BestTokens(tokens.masked_fill(is_end, eos), ends.where(is_end, scores), ends)


def end_at_longest(
    choice: Tensor, score: Tensor, end: Tensor, written: Tensor, longest: int, eos: int
) -> tuple[Tensor, Tensor]:
    """`choice` and `score`, but after `longest` tokens eos, which alone is left there.

    Args:
        choice, score, end: tokens, their log-probabilities and eos's, `[rows, block]`.
        written: tokens before the first of a row, `[rows]`.
    """
    step = written[:, None] + torch.arange(choice.shape[1], device=written.device)
    must_end = step >= longest
    return choice.masked_fill(must_end, eos), end.where(must_end, score)


class Rules:
    """Forbids tokens in left-to-right decoding. All rows have the same number of tokens."""

    def __init__(
        self,
        config: ModelConfig,
        shortest: int,
        longest: int,
        no_repeat_ngram_size: int,
        device: torch.device,
        forced_eos: bool = False,
        renormalize: bool = False,
    ) -> None:
        """`shortest`, `longest`: tokens of an output; `no_repeat_ngram_size`: 0 for no such rule.

        `forced_eos`: eos at the longest length has probability 1. `renormalize`: what is left has
        probability 1 together.
        """
        self._eos = config.eos_token_id
        self._shortest = shortest
        self._longest = longest
        self._ngram_size = no_repeat_ngram_size
        self._forced_eos = forced_eos
        self._renormalize = renormalize
        # What the decoder has read counts, as in other libraries; eos must be free to come.
        prefix = [token for token in config.target_frame.prefix if token != self._eos]
        self._prefix = ids_on(device, prefix)
        # Both sets are on the device from the start: a step then copies nothing to it.
        forbidden = forbidden_in_ar(config)
        self._forbidden = ids_on(device, forbidden)
        self._forbidden_early = ids_on(device, [*forbidden, self._eos])
        self._vocab_size = config.vocab_size

    @cached_property
    def _masks(self) -> tuple[Tensor, Tensor]:
        """Booleans `[vocab]` of the forbidden tokens, without eos and with it: only `choose` reads them."""
        nothing = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._forbidden.device)
        late, early = (
            nothing.index_fill(0, ids, True) for ids in (self._forbidden, self._forbidden_early)
        )
        return late, early

    @property
    def are_fixed(self) -> bool:
        """Whether what is forbidden does not depend on what has been written, nor a score on what is forbidden."""
        return not self._ngram_size and not self._renormalize

    def choose(self, step: int, best: Callable[[Tensor], BestTokens]) -> tuple[Tensor, Tensor]:
        """Tokens and their scores `[rows]` after `step` tokens, where the rules `are_fixed`.

        `best` gives the best tokens that are not true in a boolean `[vocab]`.
        """
        late, early = self._masks
        tokens, scores, ends = best(early if step < self._shortest else late)
        if step < self._longest:
            return tokens, scores
        # Only eos is left.
        return tokens.fill_(self._eos), torch.zeros_like(ends) if self._forced_eos else ends

    def apply(self, log_probs: Tensor, written: Tensor) -> Tensor:
        """Set `log_probs [rows, vocab]` to -inf where a token is forbidden, in place.

        Args:
            written: the tokens so far, `[rows, step]`.

        Returns:
            `log_probs`. At the longest length only eos is left.
        """
        self._forbid(log_probs, written)
        return log_probs.log_softmax(dim=1) if self._renormalize else log_probs

    def _forbid(self, log_probs: Tensor, written: Tensor) -> None:
        step = written.shape[1]
        if step == self._longest:
            end = 0.0 if self._forced_eos else log_probs[:, self._eos].clone()
            log_probs.fill_(-torch.inf)
            log_probs[:, self._eos] = end
            return
        forbidden = self._forbidden_early if step < self._shortest else self._forbidden
        log_probs.index_fill_(1, forbidden, -torch.inf)
        if self._ngram_size:
            read = torch.cat((self._prefix.expand(len(written), -1), written), dim=1)
            # Of fewer than n tokens there is no n-gram yet that could come again.
            if read.shape[1] >= self._ngram_size:
                self._forbid_repetitions(log_probs, read)

    def _forbid_repetitions(self, log_probs: Tensor, written: Tensor) -> None:
        """Forbid every token that would end an n-gram for the second time."""
        ngrams = written.unfold(1, self._ngram_size, 1)
        prefixes = ngrams[..., :-1]
        last_tokens = ngrams[..., -1]
        # The n - 1 newest tokens would begin the next n-gram.
        newest = written[:, None, written.shape[1] - self._ngram_size + 1 :]
        repeated = (prefixes == newest).all(-1)
        # Added up, so that every n-gram writes, repeated or not: a choice among them would wait for the device.
        penalty = torch.zeros_like(repeated, dtype=log_probs.dtype)
        penalty.masked_fill_(repeated, -torch.inf)
        log_probs.scatter_add_(1, last_tokens, penalty)
