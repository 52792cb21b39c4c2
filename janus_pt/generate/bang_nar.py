"""One pass over mask symbols that end by eos: BANG's non-autoregressive decoding (Qi et al. 2021).

For models of the objective `bang_nar`, which predict no length. Each mask symbol reads itself and
those before it, so that how many follow changes nothing: their number only bounds the output.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from janus_pt.generate.constraints import forbidden_in_nar, vocabulary_mask
from janus_pt.generate.hypotheses import DecodingOptions, Hypotheses
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.refine import most_probable
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source
from janus_pt.utils.errors import UserError


class OnePassOptions(DecodingOptions):
    """One pass over mask symbols."""

    masks_per_token: Annotated[float, Field(gt=0)] = 2.0
    """Mask symbols for each token of the source, bos and eos counted: a bound on the output besides
    `max_length`."""
    remove_repeats: bool = False
    """Remove each token that equals the one before it."""

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of `one_pass`."""
        return one_pass(model, source, self)


@torch.inference_mode()
def one_pass(model: JanusTransformer, source: Source, options: OnePassOptions) -> Hypotheses:
    """The most probable token at every mask symbol, cut at the first eos.

    The score is the mean log-probability, eos counted where there is one.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    if len(config.target_frame.prefix) > 1:
        raise UserError(
            "mode: bang_nar is for models whose model.target_prefix is one token; use another mode"
        )
    shortest = options.min_length
    longest = options.longest(config.max_positions - config.target_frame.size)
    source_lengths = (source.samples >= 0).sum(dim=1)
    limits = (source_lengths * options.masks_per_token).ceil().long().clamp(shortest, longest)

    # One mask symbol more than tokens, so that eos may follow the longest output.
    width = int(limits.max()) + 1
    tokens, token_scores = _predict(model, source, width, shortest)
    position = torch.arange(width, device=tokens.device)
    is_eos = tokens == config.eos_token_id
    first_eos = torch.where(is_eos, position, width).amin(dim=1)
    lengths = torch.minimum(first_eos, limits)

    # A sentence that is cut at its limit has no eos to count.
    has_eos = first_eos <= limits
    num_counted = lengths + has_eos
    is_counted = position < num_counted[:, None]
    mean = (token_scores * is_counted).sum(dim=1) / is_counted.sum(dim=1)

    outside = position >= lengths[:, None]
    hypotheses = Hypotheses(
        tokens=tokens.masked_fill(outside, config.pad_token_id)[:, None],
        token_scores=token_scores.masked_fill(outside, 0)[:, None],
        lengths=lengths[:, None],
        scores=mean[:, None],
        passes=torch.ones_like(lengths),
    )
    if options.remove_repeats:
        return hypotheses.without_repeats(config.pad_token_id)
    return hypotheses


def _predict(
    model: JanusTransformer, source: Source, width: int, shortest: int
) -> tuple[Tensor, Tensor]:
    """Best tokens at `width` mask symbols and their log-probabilities, `[sources, width]`.

    There is no eos among the first `shortest`.
    """
    config = model.config
    memory = read_sources(model, source)
    num_sources = len(memory)
    position = torch.arange(width, device=memory.device)
    masks = position.new_full((num_sources, width), config.mask_token_id)
    positions = (position + config.ar_position_offset).expand_as(masks)
    causal = (position <= position[:, None])[None, None]
    caches = [LayerCache(layer, keep=False) for layer in memory.layers]
    hidden = model.decode_step(masks, positions, width, causal, memory.mask, caches)

    no_eos = vocabulary_mask(forbidden_in_nar(config), config.vocab_size, memory.device)
    with_eos = no_eos.clone()
    with_eos[config.eos_token_id] = False
    # The two parts of each output may write different tokens.
    early_tokens, early_scores = most_probable(model, hidden[:, :shortest].flatten(0, 1), no_eos)
    late_tokens, late_scores = most_probable(model, hidden[:, shortest:].flatten(0, 1), with_eos)
    shape = (num_sources, -1)
    tokens = torch.cat((early_tokens.view(shape), late_tokens.view(shape)), dim=1)
    scores = torch.cat((early_scores.view(shape), late_scores.view(shape)), dim=1)
    return tokens, scores
