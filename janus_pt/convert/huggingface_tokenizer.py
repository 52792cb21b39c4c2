"""Tokenizers from the folders of Hugging Face models.

| files | model | ids |
|---|---|---|
| `source.spm`, `target.spm`, `vocab.json` (`target_vocab.json`) | Marian | vocab.json |
| `sentencepiece.bpe.model`, `vocab.json` | M2M-100 | vocab.json, then the languages |
| `sentencepiece.bpe.model`, perhaps `tokenizer.json` | mBART, mBART-50, NLLB | tokenizer.json, or fairseq's rule |
| `tokenizer.json` | BART and others | as it says |
| `vocab.json`, `merges.txt` | BART | vocab.json |

Where there is a SentencePiece model, it cuts the text: what transformers 5 makes of it is not always the same, as
`MBartTokenizer` forgets its normalisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_pt.convert.tokenizers_json import Merge, byte_level_json
from janus_pt.tokenizer import (
    MASK,
    SPECIAL_TOKENS,
    Tokenizer,
    load_tokenizer,
    mapped_tokenizer,
    read_bounded,
    read_tokenizer,
)
from janus_pt.tokenizer.sentencepiece_segmenter import SentencePieceSegmenter
from janus_pt.utils.errors import UserError

CONFIG = "tokenizer_config.json"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
FAIRSEQ_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3."""
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT "
    "lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MBART50 = (
    f"{_MBART} af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN "
    "mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
_M2M100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl "
    "gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml "
    "mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th "
    "tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
LANGUAGES = {
    "MBartTokenizer": _MBART.split(),
    "MBart50Tokenizer": _MBART50.split(),
    "M2M100Tokenizer": [f"__{code}__" for code in _M2M100.split()],
}
"""By tokenizer: the languages behind the pieces of SentencePiece, in the order of their ids."""

Json = dict[str, Any]


def from_huggingface(folder: Path) -> list[Tokenizer]:
    """The target's tokenizer; then the source's, if that has its own (Marian).

    The ids are the original's. No token is added: Marian's have no `<s>` and no `<mask>`; and a
    model may have more or fewer rows, see `tokenizer_size.py`. No language is read from text,
    except Marian's `>>fra<<` at its beginning.

    Raises:
        UserError: there is no tokenizer of a known kind, or its files do not fit each other.
    """
    config: Json = {}
    if _has(folder, CONFIG):
        config = _json(folder / CONFIG)
    _check_names(config, folder)
    fitting = [read for names, read in READERS.items() if all(_has(folder, n) for n in names)]
    if not fitting:
        raise UserError(
            f"{folder}: no tokenizer here: neither tokenizer.json, nor vocab.json and merges.txt, "
            f"nor {SENTENCEPIECE_FILE}, nor source.spm, target.spm and vocab.json"
        )
    return fitting[0](folder, config)


def _marian(folder: Path, config: Json) -> list[Tokenizer]:
    """Two SentencePiece models; one vocabulary for both, or one for each."""
    own = _has(folder, "target_vocab.json")
    vocabularies = {"target": "target_vocab.json" if own else "vocab.json", "source": "vocab.json"}
    tokenizers = []
    for side, name in vocabularies.items():
        tokens = _tokens(folder / name)
        # Languages to translate to: one of them begins a source.
        languages = [token for token in tokens if token.startswith(">>") and token.endswith("<<")]
        codes = [*languages, *_append_added(tokens, folder, config)]
        model = folder / f"{side}.spm"
        tokenizers.append(_mapped(model, tokens, codes))
    target, source = tokenizers
    return [target] if target.content == source.content else [target, source]


def _m2m100(folder: Path, config: Json) -> list[Tokenizer]:
    """A vocabulary, and the languages behind it."""
    known = config.get("language_codes", "m2m100")
    if known != "m2m100":
        raise UserError(f"{folder / CONFIG}: language_codes {known!r}: only 'm2m100' is known here")
    languages = LANGUAGES["M2M100Tokenizer"]
    tokens = [*_tokens(folder / "vocab.json"), *languages]
    return [_mapped(folder / SENTENCEPIECE_FILE, tokens, languages)]


def _fairseq_order(folder: Path, config: Json) -> list[Tokenizer]:
    """fairseq's four tokens, the pieces of SentencePiece, languages, and the mask."""
    path = folder / SENTENCEPIECE_FILE
    if _has(folder, "tokenizer.json"):
        listed = load_tokenizer(folder / "tokenizer.json").vocabulary
        codes = [listed.tokens[number] for number in sorted(listed.codes)]
        return [_mapped(path, listed.tokens, codes, listed.mask_takes_space)]
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name not in LANGUAGES:
        raise UserError(
            f"{folder / CONFIG}: tokenizer_class {name!r}: the order of its tokens is not known "
            "here; save the tokenizer with transformers, which writes a tokenizer.json"
        )
    pieces = SentencePieceSegmenter(read_bounded(path), str(path)).pieces
    # Its own first three are unk, bos and eos.
    tokens = [*FAIRSEQ_FIRST, *pieces[3:], *LANGUAGES[name], MASK]
    return [_mapped(path, tokens, LANGUAGES[name])]


def _tokenizer_json(folder: Path, config: Json) -> list[Tokenizer]:
    """A file of the library `tokenizers`, byte for byte if possible."""
    path = folder / "tokenizer.json"
    tokenizer = load_tokenizer(path)
    values: Json = json.loads(tokenizer.content)
    settings = values.get("pre_tokenizer") or {}
    # transformers follows tokenizer_config.json.
    wanted = config.get("add_prefix_space", settings.get("add_prefix_space"))
    if settings.get("type") == "ByteLevel" and settings["add_prefix_space"] != wanted:
        settings["add_prefix_space"] = bool(wanted)
        tokenizer = read_tokenizer(json.dumps(values).encode(), str(path))
    return [tokenizer]


def _byte_level(folder: Path, config: Json) -> list[Tokenizer]:
    """BART's vocabulary and merges."""
    path = folder / "vocab.json"
    tokens = _tokens(path)
    added = _append_added(tokens, folder, config)
    if added:
        raise UserError(
            f"{folder / CONFIG}: added_tokens_decoder: {added[0]!r} is not in vocab.json; save the "
            "tokenizer with transformers, which writes a tokenizer.json"
        )
    mask = config.get("mask_token")
    # fairseq's BART reads text so; transformers 5 does not where no file says it.
    takes_space = bool(mask.get("lstrip", True)) if isinstance(mask, dict) else True
    add_prefix_space = bool(config.get("add_prefix_space"))
    merges = read_merges(folder / "merges.txt")
    try:
        content = byte_level_json(tokens, merges, takes_space, add_prefix_space)
    except ValueError as error:
        raise UserError(f"{folder / 'merges.txt'}: does not fit vocab.json: {error}") from None
    return [read_tokenizer(content, str(path))]


READERS: dict[tuple[str, ...], Callable[[Path, Json], list[Tokenizer]]] = {
    ("source.spm", "target.spm", "vocab.json"): _marian,
    (SENTENCEPIECE_FILE, "vocab.json"): _m2m100,
    (SENTENCEPIECE_FILE,): _fairseq_order,
    ("tokenizer.json",): _tokenizer_json,
    ("vocab.json", "merges.txt"): _byte_level,
}
"""By the files that a folder has: the first that fits counts."""


def _mapped(
    model: Path, tokens: list[str], codes: list[str], mask_takes_space: bool = True
) -> Tokenizer:
    content = read_bounded(model)
    return mapped_tokenizer("sentencepiece", content, tokens, codes, mask_takes_space, str(model))


def _append_added(tokens: list[str], folder: Path, config: Json) -> list[str]:
    """Put the special tokens that follow the vocabulary behind `tokens`; returns them."""
    added = []
    entries = config.get("added_tokens_decoder") or {}
    for number in sorted(map(int, entries)):
        if number < len(tokens):
            continue
        entry = entries[str(number)]
        if number > len(tokens) or not entry.get("special"):
            raise UserError(
                f"{folder / CONFIG}: added_tokens_decoder: {number}: only special tokens right "
                "behind the vocabulary can be read here"
            )
        tokens.append(entry["content"])
        added.append(entry["content"])
    return added


def _check_names(config: Json, folder: Path) -> None:
    """Special tokens must have the names by which we find them."""
    for role, name in SPECIAL_TOKENS.items():
        value = config.get(f"{role}_token")
        given = value.get("content") if isinstance(value, dict) else value
        if given not in (None, name):
            raise UserError(f"{folder / CONFIG}: {role}_token is {given!r}; only {name!r} is known")


def _tokens(path: Path) -> list[str]:
    """The tokens of a vocab.json by id."""
    ids = _json(path)
    if not all(isinstance(number, int) for number in ids.values()):
        raise UserError(f"{path}: should hold tokens and their ids, but holds something else")
    by_id = {number: token for token, number in ids.items()}
    missing = next((number for number in range(len(by_id)) if number not in by_id), None)
    if missing is not None:
        raise UserError(f"{path}: no token has the id {missing}; copy it again")
    return [by_id[number] for number in range(len(by_id))]


def read_merges(path: Path) -> list[Merge]:
    """The merges of a merges.txt, best first; `UserError` names a line that is none."""
    merges = []
    for number, line in enumerate(read_bounded(path).decode(errors="replace").split("\n"), 1):
        text = line.rstrip("\r")
        if not text or (number == 1 and text.startswith("#version")):
            continue
        first, separator, second = text.partition(" ")
        if not separator or " " in second:
            raise UserError(f"{path}:{number}: a merge is two tokens with a space between them")
        merges.append((first, second))
    return merges


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _json(path: Path) -> Json:
    """An object of a JSON file."""
    try:
        values = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; copy it again")
    return values
