"""Decoding left to right with P_AR: greedy search, beam search, sampling."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from janus_pt.config.schema import Count, Positive
from janus_pt.generate.beam import beam_search
from janus_pt.generate.constraints import Rules
from janus_pt.generate.hypotheses import Hypotheses, LengthOptions, score_dtype
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.generate.sampling import sample, sampling_keys, uniform
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

LEAVE_SHARE = 8
"""Finished sentences leave the batch when they are an eighth of it: moving the others costs, too."""


class AutoregressiveOptions(LengthOptions):
    """Options of left-to-right decoding; names and meanings are those of Hugging Face's `generate`."""

    num_beams: Positive = 1
    """Width of the beam search; 1 is greedy search."""
    length_penalty: float = 1.0
    """A hypothesis' score is its log-probability over the number of its tokens, eos counted, to this power."""
    num_return_sequences: Positive = 1
    """Outputs for each input, best first."""
    no_repeat_ngram_size: Count = 0
    """No n-gram of this size is written twice; 0: no rule."""
    do_sample: bool = False
    """Draw each token, instead of searching."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Logits are divided by it before a token is drawn."""
    top_k: Count = 0
    """Draw among the k most probable tokens only; 0: among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest tokens that together have this probability."""
    seed: Count = 0
    """The same seed and input give the same samples, whatever else is in the batch."""

    @model_validator(mode="after")
    def _fit_together(self) -> AutoregressiveOptions:
        if self.do_sample and self.num_beams > 1:
            raise ValueError("num_beams: sampling has no beams; leave out num_beams or do_sample")
        drawn = {"temperature", "top_k", "top_p", "seed"} & self.model_fields_set
        if drawn and not self.do_sample:
            raise ValueError(
                f"{min(drawn)}: has no effect without do_sample; set do_sample, or leave it out"
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences: {self.num_return_sequences} is more than the {self.num_beams} beams; "
                "raise num_beams, or set do_sample"
            )
        return self


@torch.inference_mode()
def autoregressive(
    model: JanusTransformer, source: Source, options: AutoregressiveOptions
) -> Hypotheses:
    """The best hypotheses for each source, `num_return_sequences` at least.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    longest = options.longest(config.max_positions - 1 - config.ar_position_offset)
    rules = Rules(
        config, options.min_length, longest, options.no_repeat_ngram_size, source.tokens.device
    )
    if options.num_beams > 1:
        return beam_search(model, source, rules, longest, options.num_beams, options.length_penalty)
    return _one_by_one(model, source, rules, longest, options)


def _one_by_one(
    model: JanusTransformer,
    source: Source,
    rules: Rules,
    longest: int,
    options: AutoregressiveOptions,
) -> Hypotheses:
    """Greedy search, or `num_return_sequences` samples of each source."""
    copies = options.num_return_sequences if options.do_sample else 1
    keys = sampling_keys(source, options.seed, copies) if options.do_sample else None
    memory = read_sources(model, source)
    decoder = IncrementalDecoder(model, memory)
    rows = torch.arange(len(memory) * copies, device=source.tokens.device)
    found = _Written(len(rows), longest, model.config.pad_token_id, memory.length_logits)
    newest = torch.full_like(rows, model.config.bos_token_id)
    finished = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(longest + 1):
        log_probs = rules.apply(decoder.step(newest), found.tokens[:, :step])
        if keys is None:
            score, newest = log_probs.max(dim=-1)
        else:
            score, newest = sample(
                log_probs, uniform(keys, step), options.temperature, options.top_k, options.top_p
            )
        finished |= newest == model.config.eos_token_id
        found.write(step, newest, score, finished)
        ended = finished.view(-1, copies).all(dim=1)
        leaving = int(ended.sum())
        if leaving == len(ended):
            break
        if leaving * LEAVE_SHARE >= len(ended):
            sources = (~ended).nonzero()[:, 0]
            going = (sources[:, None] * copies + torch.arange(copies, device=rows.device)).flatten()
            decoder.keep(sources, going)
            found.keep(going)
            newest, finished = newest[going], finished[going]
            keys = None if keys is None else keys[going]
    return found.hypotheses(copies, options.length_penalty)


class _Written:
    """Tokens `[rows, longest]` and their scores, eos with its own, of the rows that go on; and those put aside."""

    def __init__(self, rows: int, longest: int, pad_token_id: int, like: Tensor) -> None:
        self.tokens = torch.full((rows, longest + 1), pad_token_id, device=like.device)
        self._scores = torch.zeros(self.tokens.shape, dtype=score_dtype(like), device=like.device)
        self._lengths = torch.zeros_like(self.tokens[:, 0])
        self._rows = torch.arange(rows, device=like.device)
        self._aside: list[tuple[Tensor, ...]] = []
        self._pad = pad_token_id

    def write(self, step: int, token: Tensor, score: Tensor, finished: Tensor) -> None:
        """The next token of each row; what a finished row gets is not read."""
        self.tokens[:, step] = token
        self._scores[:, step] = score
        self._lengths += ~finished

    def keep(self, going: Tensor) -> None:
        """Put all rows but `going` aside."""
        whole = (self._rows, self.tokens, self._scores, self._lengths)
        self._aside.append(
            whole
        )  # the rows that go on are in it, too; what becomes of them is put over it at the end
        self._rows, self.tokens, self._scores, self._lengths = (x[going] for x in whole)

    def hypotheses(self, copies: int, length_penalty: float) -> Hypotheses:
        """All rows in their first order, `copies` to a source."""
        tokens, scores, lengths = self._gathered()
        place = torch.arange(tokens.shape[1], device=tokens.device)
        scores = scores.masked_fill(place > lengths[:, None], 0)
        total = scores.sum(dim=1) / (lengths + 1).to(scores.dtype) ** length_penalty
        inside = place < lengths[:, None]
        width = max(1, int(lengths.max()))
        tokens = tokens.masked_fill(~inside, self._pad)[:, :width].unflatten(0, (-1, copies))
        scores = scores.masked_fill(~inside, 0)[:, :width].unflatten(0, (-1, copies))
        lengths = lengths.unflatten(0, (-1, copies))
        passes = lengths.amax(dim=1) + 1
        return Hypotheses(
            tokens, scores, lengths, total.unflatten(0, (-1, copies)), passes
        ).best_first()

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self._aside:
            return self.tokens, self._scores, self._lengths
        _, tokens, scores, lengths = self._aside[0]
        for rows, *later in (
            *self._aside[1:],
            (self._rows, self.tokens, self._scores, self._lengths),
        ):
            for whole, part in zip((tokens, scores, lengths), later, strict=True):
                whole[rows] = part
        return tokens, scores, lengths
