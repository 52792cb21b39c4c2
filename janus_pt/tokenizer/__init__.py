"""Text to token ids and back, by SentencePiece or by Hugging Face `tokenizers`; one file is one tokenizer.

| file | what it holds | from |
|---|---|---|
| `tokenizer.model` | a SentencePiece model | `janus-pt prep train-tokenizer` |
| `tokenizer.json` | a file of the library `tokenizers` | Hugging Face: BART and most others |
| `tokenizer.mapped.json` | one of the two, and a vocabulary with ids of its own | Marian, mBART, fairseq |

The content of a file says its kind, not its name. `janus_pt.convert.huggingface_tokenizer`
(`from_huggingface`) makes them from a Hugging Face model's folder, `janus_pt.convert.fairseq_tokenizer`
(`from_fairseq`) from fairseq's dict.txt and BPE codes; `janus_pt.convert.tokenizer_size` adds a `<mask>`.
"""

from janus_pt.tokenizer.files import (
    FILE_NAMES,
    FOLDER_FILE_NAMES,
    HUGGING_FACE,
    MAX_TOKENIZER_BYTES,
    SOURCE_PREFIX,
    load_tokenizer,
    mapped_tokenizer,
    read_bounded,
    read_tokenizer,
    save_tokenizers,
)
from janus_pt.tokenizer.tokenizer import Tokenizer
from janus_pt.tokenizer.vocabulary import MASK, SPECIAL_TOKENS, Vocabulary

__all__ = [
    "FILE_NAMES",
    "FOLDER_FILE_NAMES",
    "HUGGING_FACE",
    "MASK",
    "MAX_TOKENIZER_BYTES",
    "SOURCE_PREFIX",
    "SPECIAL_TOKENS",
    "Tokenizer",
    "Vocabulary",
    "load_tokenizer",
    "mapped_tokenizer",
    "read_bounded",
    "read_tokenizer",
    "save_tokenizers",
]
