"""Tokenizers of fairseq's models: a dictionary (dict.txt), and what cuts words into its tokens.

| `codes` | tokens of the dictionary | `--bpe` of fairseq |
|---|---|---|
| codes of subword-nmt (from `#version: 0.2` on) or fastBPE | `un@@ related` | `subword_nmt`, `fastbpe` |
| GPT-2's `vocab.bpe`, with its `encoder.json` | GPT-2's ids as text: BART | `gpt2` |
| a SentencePiece model | its pieces | `sentencepiece` |

Text for the first of them must be what the model was trained on: Moses tokens, mostly, with a space between them.
"""

from __future__ import annotations

import json
from pathlib import Path

from janus_pt.convert.tokenizers_json import END_OF_WORD, Merge, byte_level_json, word_bpe_json
from janus_pt.tokenizer import (
    MASK,
    Tokenizer,
    mapped_tokenizer,
    read_bounded,
    read_tokenizer,
)
from janus_pt.utils.errors import UserError

FIRST_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3 of every dictionary; the file does not have them."""
OVERWRITE = " #fairseq:overwrite"
SUFFIX = "@@"
"""subword-nmt's mark of a piece that is not a word's last."""
GPT2_END = "<|endoftext|>"
"""No merge gives it."""
_NO_CODES = "neither codes of subword-nmt from #version: 0.2 on, nor of fastBPE (with counts)"


def from_fairseq(
    dictionary: Path, codes: Path, encoder_json: Path | None = None, mask: bool = False
) -> Tokenizer:
    """The tokenizer of a dictionary of fairseq.

    Args:
        dictionary: dict.txt, or dict.LANG.txt.
        codes: see the table above.
        encoder_json: GPT-2's ids, with GPT-2's merges as `codes`.
        mask: put `<mask>` behind the last token, as fairseq's denoising task does.

    Raises:
        UserError: a file is missing or not of this format.
    """
    tokens = read_dictionary(dictionary) + ([MASK] if mask else [])
    origin = str(dictionary)
    content = read_bounded(codes)
    # So begins a SentencePiece model, and no text.
    if content.startswith(b"\n"):
        return mapped_tokenizer("sentencepiece", content, tokens, origin=origin)
    merges = read_merges(codes, _lines(codes, content))
    if encoder_json is not None:
        return _gpt2(tokens, merges, encoder_json, origin)
    special = {*FIRST_TOKENS, MASK}
    pieces = [token if token in special else _piece(token) for token in tokens]
    return mapped_tokenizer("tokenizers", word_bpe_json(merges, pieces), pieces, origin=origin)


def read_dictionary(path: Path) -> list[str]:
    """The tokens of a dict.txt by id, the first four included.

    Raises:
        UserError: it is missing, or a line is not a token and a count.
    """
    tokens = list(FIRST_TOKENS)
    known = set(tokens)
    for number, line in enumerate(_lines(path, read_bounded(path)), 1):
        text = line.rstrip()
        overwrites = text.endswith(OVERWRITE)
        token, _, count = text.removesuffix(OVERWRITE).rpartition(" ")
        if not count.isdecimal() or not token:
            raise UserError(
                f"{path}:{number}: a line of a fairseq dictionary is a token, a space and a count"
            )
        # fairseq refuses them as well.
        if token in known and not overwrites:
            raise UserError(f"{path}:{number}: {token!r} is there twice")
        known.add(token)
        tokens.append(token)
    return tokens


def read_merges(path: Path, lines: list[str]) -> list[Merge]:
    """The merges of a BPE file, best first.

    Raises:
        UserError: a line is no merge, or the file is of subword-nmt's first version, which has no
            pieces for the ends of words.
    """
    has_version = lines[0].startswith("#version:")
    if has_version and lines[0].split()[-1] == "0.1":
        raise UserError(f"{path}: {_NO_CODES}")
    # Without a version it is fastBPE's file, which has a count behind each merge.
    fields = 2 if has_version else 3
    merges: dict[Merge, None] = {}
    for number, line in enumerate(lines[has_version:], 1 + has_version):
        parts = line.strip(" ").split(" ")
        if len(parts) != fields:
            raise UserError(f"{path}:{number}: {_NO_CODES}")
        # Of two equal ones the first counts.
        merges.setdefault((parts[0], parts[1]))
    return list(merges)


def _piece(token: str) -> str:
    """A token of the dictionary as the BPE model spells it, which marks the ends of words."""
    is_inner = token.endswith(SUFFIX) and token != SUFFIX
    return token.removesuffix(SUFFIX) if is_inner else token + END_OF_WORD


def _gpt2(tokens: list[str], merges: list[Merge], encoder_json: Path, origin: str) -> Tokenizer:
    """The tokenizer of a dictionary of GPT-2's ids, as text."""
    try:
        ids = json.loads(read_bounded(encoder_json))
        by_id = {str(number): piece for piece, number in ids.items()}
        all_pieces = sorted(ids, key=ids.__getitem__)
        # Tokens that are no ids are special ones, and fairseq's fillers, `madeupword0000`.
        pieces = [by_id.get(token, token) for token in tokens]
        if set(all_pieces) <= {*pieces, GPT2_END}:
            return read_tokenizer(byte_level_json(pieces, merges), origin)
        # A dictionary of some text's tokens: the others are unknown to it.
        model = byte_level_json([*FIRST_TOKENS, *all_pieces], merges)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{encoder_json}: not GPT-2's ids of its merges: {error}") from None
    return mapped_tokenizer("tokenizers", model, pieces, origin=origin)


def _lines(path: Path, content: bytes) -> list[str]:
    """The lines; tokens may be other line breaks of Unicode, so that only \\n and \\r end one."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n")
