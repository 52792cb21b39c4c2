"""Files of the library `tokenizers` (tokenizer.json), made of a vocabulary and merges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from janus_pt.tokenizer import MASK, SPECIAL_TOKENS

Merge = tuple[str, str]
END_OF_WORD = "</w>"
"""How a piece that ends a word is marked in a word's BPE."""


def byte_level_json(
    tokens: Sequence[str],
    merges: Sequence[Merge],
    mask_takes_space: bool = True,
    add_prefix_space: bool = False,
) -> bytes:
    """Byte-level BPE of GPT-2's kind, as BART has it.

    Args:
        tokens: a token's place is its id; special tokens have the names of `SPECIAL_TOKENS`.
        merges: best first.
        mask_takes_space: `<mask>` in a text takes the space to its left.
        add_prefix_space: a space is put before the first word.

    Raises:
        ValueError: a merge's parts or its result are no tokens.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    for pair in merges:
        missing = {*pair, "".join(pair)} - ids.keys()
        if missing:
            raise ValueError(f"the merge {' '.join(pair)!r} has no token for {missing.pop()!r}")
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    special = [name for name in SPECIAL_TOKENS.values() if name in ids]
    # In the order of their ids, as the library gives ids in this order.
    for name in sorted(special, key=ids.__getitem__):
        takes_space = name == MASK and mask_takes_space
        added = AddedToken(name, lstrip=takes_space, normalized=False, special=True)
        tokenizer.add_special_tokens([added])
    if {"<s>", "</s>"} <= ids.keys():
        eos, bos = ("</s>", ids["</s>"]), ("<s>", ids["<s>"])
        tokenizer.post_processor = processors.RobertaProcessing(
            eos, bos, trim_offsets=True, add_prefix_space=add_prefix_space
        )
    return _content(tokenizer)


def word_bpe_json(merges: Sequence[Merge], pieces: Iterable[str], unk: str = "<unk>") -> bytes:
    """BPE of words that white space separates, as subword-nmt has it; spaces themselves are not kept.

    Args:
        merges: best first; pieces that end a word have `END_OF_WORD` behind them.
        pieces: further pieces; single characters among them need no merge.
        unk: the piece of characters that are unknown.
    """
    # Each once, in an order that is always the same.
    names = dict.fromkeys([unk, *pieces])
    for first, second in merges:
        names |= dict.fromkeys([first, second, first + second])
    ids = {name: number for number, name in enumerate(names)}
    model = models.BPE(ids, list(merges), unk_token=unk, end_of_word_suffix=END_OF_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return _content(tokenizer)


def _content(tokenizer: tokenizers.Tokenizer) -> bytes:
    return (tokenizer.to_str(pretty=True) + "\n").encode()
