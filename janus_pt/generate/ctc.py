"""One pass over mask symbols that write a token or nothing: decoding of models of the objective `ctc`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import model_validator
from torch import Tensor

from janus_pt.generate.constraints import forbidden_in_nar, vocabulary_mask
from janus_pt.generate.hypotheses import DecodingOptions, Hypotheses
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.refine import most_probable, read_visible, visible_mask
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


class CTCOptions(DecodingOptions):
    """One pass over mask symbols, each of which writes a token or the blank symbol."""

    @model_validator(mode="after")
    def _has_no_shortest(self) -> CTCOptions:
        if self.min_length > 1:
            raise ValueError("min_length: blanks may stand anywhere, so no length can be forced")
        return self

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of `decode_ctc`."""
        return decode_ctc(model, source, self)


@torch.inference_mode()
def decode_ctc(model: JanusTransformer, source: Source, options: CTCOptions) -> Hypotheses:
    """The tokens of the most probable path; an output may be empty.

    The score is the mean log-probability of the path's slots; a token's is the slot's that wrote it.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    longest = options.longest(config.max_positions)
    path = _best_path(model, source)
    starts = path.tokens != config.mask_token_id
    # Equal tokens side by side are one.
    starts[:, 1:] &= path.tokens[:, 1:] != path.tokens[:, :-1]
    starts &= path.is_slot
    # What the output cannot hold is cut off.
    starts &= starts.cumsum(dim=1) <= longest

    # A stable sort of "writes nothing" moves the tokens to the front, in their order.
    order = (~starts).byte().argsort(dim=1, stable=True)
    lengths = starts.sum(dim=1)
    position = torch.arange(path.tokens.shape[1], device=lengths.device)
    outside = position >= lengths[:, None]
    tokens = path.tokens.gather(1, order).masked_fill(outside, config.pad_token_id)
    token_scores = path.scores.gather(1, order).masked_fill(outside, 0)
    return Hypotheses(
        tokens=tokens[:, None],
        token_scores=token_scores[:, None],
        lengths=lengths[:, None],
        scores=(path.scores.sum(dim=1) / path.is_slot.sum(dim=1))[:, None],
        passes=torch.ones_like(lengths),
    )


@dataclass(frozen=True)
class _Path:
    """The best token of every slot; all `[sources, slots]`.

    tokens: the blank, which is the mask symbol, where nothing is written. scores: log-probabilities,
    0 behind a source's own slots, where `is_slot` is false.
    """

    tokens: Tensor
    scores: Tensor
    is_slot: Tensor


def _best_path(model: JanusTransformer, source: Source) -> _Path:
    config = model.config
    memory = read_sources(model, source)
    source_lengths = (source.samples >= 0).sum(dim=1)
    counts = (config.upsampling * source_lengths).clamp(max=config.max_positions)
    width = min(config.upsampling * source.tokens.shape[1], config.max_positions)
    is_slot = torch.arange(width, device=counts.device) < counts[:, None]
    masks = torch.full_like(is_slot, config.mask_token_id, dtype=torch.long)
    hidden = read_visible(model, memory, masks, visible_mask(counts, width))

    forbidden = vocabulary_mask(forbidden_in_nar(config), config.vocab_size, memory.device)
    forbidden[config.mask_token_id] = False
    # Of all slots, also those behind a source's own: to choose among them would wait for the device.
    tokens, scores = most_probable(model, hidden.flatten(0, 1), forbidden)
    scores = scores.view_as(is_slot).masked_fill(~is_slot, 0)
    return _Path(tokens.view_as(is_slot), scores, is_slot)
