"""`generation_config.json`, and the same keys in older `config.json` files: how outputs are searched.

Our exports hold no decoding options. What a file asks for is translated into options of mode "ar",
for people to give; what has no counterpart is refused, as outputs would differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GENERATION_CONFIG = "generation_config.json"

SEARCH = ("num_beams", "length_penalty", "no_repeat_ngram_size", "renormalize_logits")
"""Keys that options of ours are called by, too."""
DEFAULTS = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "renormalize_logits": False,
}
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
TOKENS = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
ENDS = ("eos_token_id", "forced_eos_token_id")
STOPPING = "early_stopping"
"""True, or false and absent: our `late_stopping`."""
BARRED = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens that are never written; ours are pad, bos and mask."""
NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "penalty_alpha": None,
    "dola_layers": None,
    "sequence_bias": None,
    "constraints": None,
    "force_words_ids": None,
    "exponential_decay_length_penalty": None,
    "forced_decoder_ids": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "num_return_sequences": 1,
}
"""Keys whose other values change outputs in ways that we do not have."""
HARMLESS = {
    "_from_model_config",
    "cache_implementation",
    "epsilon_cutoff",
    "eta_cutoff",
    "max_time",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "remove_invalid_values",
    "return_dict_in_generate",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "transformers_version",
    "typical_p",
    "use_cache",
}
"""Keys that change nothing without `do_sample`, or that a note is made of."""
GENERATION_KEYS = {*SEARCH, *LENGTHS, *TOKENS, *BARRED, *NEUTRAL, STOPPING} | {
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "output_scores",
    "return_dict_in_generate",
    "remove_invalid_values",
}
"""Keys of older `config.json` files that belong here."""


def generation_problems(
    values: Mapping[str, Any], barred: set[int], eos: int
) -> Iterator[tuple[str, str]]:
    """Keys whose values have no counterpart here, with the reason.

    Args:
        barred: tokens that we never write.
        eos: the model's; an output ends there, and nowhere else.
    """
    known = {*SEARCH, *LENGTHS, *TOKENS, *BARRED, *NEUTRAL, *HARMLESS, STOPPING}
    remedy = "outputs would differ; remove the key to convert the model without it"
    for key in sorted(values.keys() - known):
        yield key, f"unknown, so {remedy}"
    for key, neutral in NEUTRAL.items():
        if values.get(key) not in (None, neutral):
            yield key, f"{values[key]!r} has no counterpart here, so {remedy}"
    if values.get(STOPPING) not in (None, True, False):
        yield STOPPING, f"{values[STOPPING]!r} has no counterpart here, so {remedy}"
    for key in ENDS:
        if values.get(key) not in (None, eos, [eos]):
            yield key, f"{values[key]!r} is not the model's eos, {eos}, so {remedy}"
    for key in LENGTHS:
        value = values.get(key)
        # Python's booleans are integers.
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            yield key, f"should be a whole number, but is {value!r}"
    for key in BARRED:
        listed = values.get(key) or []
        if not isinstance(listed, list):
            yield key, f"should be a list, but is {listed!r}"
            continue
        sequences = [token if isinstance(token, list) else [token] for token in listed]
        if not all(len(tokens) == 1 and tokens[0] in barred for tokens in sequences):
            yield key, f"bars more than pad, bos and mask, so {remedy}"


def as_options(values: Mapping[str, Any], prefix: int) -> dict[str, Any]:
    """The options of mode "ar" that search as these settings do.

    Args:
        prefix: tokens that the decoder reads before the text; theirs count in lengths.
    """
    options = {key: values[key] for key in SEARCH if values.get(key) not in (None, DEFAULTS[key])}
    # They count the prefix and eos: all of it in the length, all but the first in new tokens.
    if values.get("max_new_tokens"):
        options["max_length"] = values["max_new_tokens"] - prefix
    elif values.get("max_length"):
        options["max_length"] = values["max_length"] - prefix - 1
    shortest = [0]
    if values.get("min_length"):
        shortest.append(values["min_length"] - prefix)
    if values.get("min_new_tokens"):
        shortest.append(values["min_new_tokens"] - prefix + 1)
    options["min_length"] = max(shortest)
    if values.get("forced_eos_token_id") is not None:
        options["forced_eos"] = True
    if options.get("num_beams") and not values.get(STOPPING):
        options["late_stopping"] = True
    return options
