"""The ids of tokens, and which of them are special."""

from __future__ import annotations

from dataclasses import dataclass, field

MASK = "<mask>"
SPECIAL_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "mask": MASK}
"""The special tokens by role, as fairseq and its descendants write them."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id.

    Attributes:
        tokens: a token's place is its id.
        special: ids by the roles of `SPECIAL_TOKENS`; roles that are missing have no token.
        codes: ids of further tokens that are no text, such as languages.
        mask_takes_space: whether the mask stands for a word with the space before it.
    """

    tokens: list[str]
    special: dict[str, int]
    codes: frozenset[int] = field(default_factory=frozenset)
    mask_takes_space: bool = True

    @classmethod
    def by_name(
        cls, tokens: list[str], codes: frozenset[int] = frozenset(), mask_takes_space: bool = True
    ) -> Vocabulary:
        """The vocabulary of `tokens`, in which special tokens have the names of `SPECIAL_TOKENS`."""
        # Of two equal tokens the first: fairseq's dictionaries may have two.
        ids = {token: number for number, token in reversed(list(enumerate(tokens)))}
        special = {role: ids[name] for role, name in SPECIAL_TOKENS.items() if name in ids}
        return cls(tokens, special, codes, mask_takes_space)

    @property
    def directions(self) -> dict[str, int]:
        """Marian's codes of languages to translate to, `>>fra<<`, with their ids."""
        codes = {self.tokens[number]: number for number in self.codes}
        return {code: number for code, number in codes.items() if code.startswith(">>")}
