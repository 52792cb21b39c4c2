"""One pass over mask symbols that end by eos: BANG's non-autoregressive decoding (Qi et al. 2021).

For models of the objective `bang_nar`, which predict no length. Each mask symbol reads itself and those before it, so
that how many follow changes nothing: their number only bounds the output.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from janus_pt.generate.hypotheses import Hypotheses, LengthOptions, is_one_of
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.mask_predict import never_generated, without_repeats
from janus_pt.generate.refine import BOUNDARY, most_probable
from janus_pt.model.attention import LayerCache
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


class OnePassOptions(LengthOptions):
    """Options of the pass."""

    masks_per_token: Annotated[float, Field(gt=0)] = 2.0
    """Mask symbols for each token of the source, bos and eos counted: a bound on the output besides `max_length`."""
    remove_repeats: bool = False
    """Leave out a token that equals the one before it."""


@torch.inference_mode()
def one_pass(model: JanusTransformer, source: Source, options: OnePassOptions) -> Hypotheses:
    """The most probable token at every mask symbol, cut at the first eos; the score is the mean log-probability, eos
    counted where there is one.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    shortest, longest = options.min_length, options.longest(config.max_positions - BOUNDARY)
    read = (source.samples >= 0).sum(dim=1)
    limits = (read * options.masks_per_token).ceil().long().clamp(shortest, longest)
    tokens, scores = _predict(model, source, int(limits.max()) + 1, shortest)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    ends = torch.where(tokens == config.eos_token_id, place, tokens.shape[1]).amin(dim=1)
    lengths = torch.minimum(ends, limits)
    counted = place < (lengths + (ends <= limits))[:, None]
    mean = (scores * counted).sum(dim=1) / counted.sum(dim=1)
    inside = place < lengths[:, None]
    tokens, scores = (
        tokens.masked_fill(~inside, config.pad_token_id),
        scores.masked_fill(~inside, 0),
    )
    passes = torch.ones_like(lengths)
    found = Hypotheses(tokens[:, None], scores[:, None], lengths[:, None], mean[:, None], passes)
    return without_repeats(found, config.pad_token_id) if options.remove_repeats else found


def _predict(
    model: JanusTransformer, source: Source, width: int, shortest: int
) -> tuple[Tensor, Tensor]:
    """Best tokens at `width` mask symbols and their log-probabilities, `[sources, width]`; no eos among the first
    `shortest`."""
    config, memory = model.config, read_sources(model, source)
    place = torch.arange(width, device=memory.device)
    tokens = place.new_full((len(memory), width), config.mask_token_id)
    causal = (place <= place[:, None])[None, None]
    caches = [LayerCache(layer, keep=False) for layer in memory.layers]
    positions = (place + config.ar_position_offset).expand_as(tokens)
    hidden = model.decode_step(tokens, positions, width, causal, memory.mask, caches)
    barred = is_one_of(never_generated(config), config.vocab_size, memory.device)
    ended = barred.clone()
    ended[config.eos_token_id] = False
    parts = [
        [x.view(len(memory), -1) for x in most_probable(model, part.flatten(0, 1), bars)]
        for part, bars in ((hidden[:, :shortest], barred), (hidden[:, shortest:], ended))
    ]
    best, scores = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return best, scores
