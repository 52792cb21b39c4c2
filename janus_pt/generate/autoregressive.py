"""Decoding left to right with P_AR: greedy search, beam search, sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.config.section import Count, Positive
from janus_pt.generate.active_rows import ActiveRows, looks_for_finished, rows_of_sources
from janus_pt.generate.beam import beam_search
from janus_pt.generate.constraints import Rules
from janus_pt.generate.counter_rng import sampling_keys, uniform
from janus_pt.generate.hypotheses import (
    DecodingOptions,
    Hypotheses,
    most_tokens,
    score_dtype,
)
from janus_pt.generate.incremental import IncrementalDecoder, SourceMemory, read_sources
from janus_pt.generate.sampling import sample
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

LEAVE_SHARE = 8
"""Finished sentences leave when they are one in so many: moving the others costs time, too."""


class AutoregressiveOptions(DecodingOptions):
    """Left-to-right decoding; options have the names and meanings of Hugging Face's `generate`."""

    num_beams: Positive = 1
    """Width of the beam search; 1 is greedy search."""
    length_penalty: float = 1.0
    """The score is the log-probability over the number of tokens, eos counted, to this power."""
    late_stopping: bool = False
    """Beam search goes on until no output would be better than the finished ones if it ended, as Hugging Face's does
    unless its `early_stopping` is true; by default, as fairseq's, until `num_beams` outputs are finished."""
    num_return_sequences: Positive = 1
    """Outputs for each input, best first."""
    no_repeat_ngram_size: Count = 0
    """No n-gram of this size is written twice; 0: no rule."""
    forced_eos: bool = False
    """The end of an output of `max_length` costs nothing, as with Hugging Face's `forced_eos_token_id`; by default it
    costs its log-probability."""
    renormalize_logits: bool = False
    """Tokens that are barred leave their probability to the others, as in CTranslate2 and with Hugging Face's option of
    this name."""
    do_sample: bool = False
    """Draw each token instead of searching."""
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
            raise ValueError("num_beams: sampling has no beams; remove num_beams or do_sample")
        sampling_options = {"temperature", "top_k", "top_p", "seed"} & self.model_fields_set
        if sampling_options and not self.do_sample:
            # The first by name, so that the message does not depend on the order of a set.
            raise ValueError(
                f"{min(sampling_options)}: has no effect without do_sample; set do_sample, or leave it out"
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences: {self.num_return_sequences} is more than the "
                f"{self.num_beams} beams; raise num_beams, or set do_sample"
            )
        return self

    @property
    def num_outputs(self) -> int:
        """Outputs that are wanted for each source."""
        return self.num_return_sequences

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of `autoregressive`."""
        return autoregressive(model, source, self)


@torch.inference_mode()
def autoregressive(
    model: JanusTransformer, source: Source, options: AutoregressiveOptions
) -> Hypotheses:
    """The best hypotheses for each source, `num_return_sequences` at least.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    config = model.config
    longest = options.longest(most_tokens(config))
    rules = Rules(
        config,
        options.min_length,
        longest,
        options.no_repeat_ngram_size,
        source.tokens.device,
        options.forced_eos,
        options.renormalize_logits,
    )
    if options.num_beams > 1:
        return beam_search(
            model,
            source,
            rules,
            options.min_length,
            longest,
            options.num_beams,
            options.length_penalty,
            options.late_stopping,
        )
    return _greedy_or_sampled(model, source, rules, longest, options)


def _greedy_or_sampled(
    model: JanusTransformer,
    source: Source,
    rules: Rules,
    longest: int,
    options: AutoregressiveOptions,
) -> Hypotheses:
    """Greedy search, or `num_return_sequences` samples of each source."""
    config = model.config
    copies = options.num_return_sequences if options.do_sample else 1
    memory = read_sources(model, source)
    decoder = IncrementalDecoder(model, memory)
    newest = decoder.start(len(memory) * copies)
    rows = _start(memory, source, copies, longest, newest, options)
    outputs = _Outputs(torch.zeros_like(rows.tokens), torch.zeros_like(rows.scores))
    for step in range(longest + 1):
        # Step 1: choose a token for each row from P_AR.
        token, score = _next_tokens(decoder, rules, rows, step, options)
        # Step 2: write it. A finished row writes on until it leaves; what lies behind its first eos
        # is not read.
        rows.tokens[:, step] = rows.newest = token
        rows.scores[:, step] = score
        # Step 3: sources all of whose rows are finished leave. This waits for the device.
        if not looks_for_finished(step, options.min_length, longest, memory.device):
            continue
        source_finished = rows.finished(step, config.eos_token_id, copies)
        num_finished = int(source_finished.sum())
        if num_finished == len(source_finished):
            break
        if num_finished * LEAVE_SHARE >= len(source_finished):
            sources = (~source_finished).nonzero()[:, 0]
            going = rows_of_sources(sources, copies)
            decoder.keep(sources, going)
            rows.leave(going, outputs)
    rows.put_back(outputs)
    return outputs.hypotheses(copies, options.length_penalty, config)


def _next_tokens(
    decoder: IncrementalDecoder,
    rules: Rules,
    rows: _Rows,
    step: int,
    options: AutoregressiveOptions,
) -> tuple[Tensor, Tensor]:
    """Each row's token number `step` and its log-probability, `[rows]`, by P_AR and the rules."""
    if decoder.chooses and rules.are_fixed and not options.do_sample:
        return rules.choose(step, partial(decoder.choose_next, rows.newest))
    log_probs = rules.apply(decoder.step(rows.newest), rows.tokens[:, :step])
    if options.do_sample:
        draw = uniform(rows.keys, step)
        return sample(log_probs, draw, options.temperature, options.top_k, options.top_p)
    score, token = log_probs.max(dim=-1)
    return token, score


@dataclass
class _Rows(ActiveRows):
    """Rows that are being written.

    Attributes:
        tokens, scores: `[active, longest + 1]`, eos included.
        newest: `[active]`: the token that is read next.
        keys: `[active]`: each row's random key; not read in greedy search.
    """

    tokens: Tensor
    scores: Tensor
    newest: Tensor
    keys: Tensor

    def finished(self, step: int, eos: int, copies: int) -> Tensor:
        """Of which sources all rows have written eos by `step`, `[active / copies]`."""
        row_finished = (self.tokens[:, : step + 1] == eos).any(dim=1)
        return row_finished if copies == 1 else row_finished.view(-1, copies).all(dim=1)


def _start(
    memory: SourceMemory,
    source: Source,
    copies: int,
    longest: int,
    newest: Tensor,
    options: AutoregressiveOptions,
) -> _Rows:
    """All rows, sources × `copies`, before the first step, in which they read `newest [rows]`."""
    index = torch.arange(len(memory) * copies, device=memory.device)
    tokens = index.new_zeros(len(index), longest + 1)
    dtype = score_dtype(memory.length_logits)
    keys = sampling_keys(source, options.seed, copies) if options.do_sample else index
    return _Rows(
        index=index,
        tokens=tokens,
        scores=torch.zeros_like(tokens, dtype=dtype),
        newest=newest,
        keys=keys,
    )


@dataclass
class _Outputs:
    """Tokens and scores of the whole batch, as in `_Rows`."""

    tokens: Tensor
    scores: Tensor

    def hypotheses(self, copies: int, length_penalty: float, config: ModelConfig) -> Hypotheses:
        """The outputs, `copies` to a source, best first."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        # Of equal numbers `argmax` takes the first: the tokens before the first eos.
        row_lengths = (self.tokens == config.eos_token_id).byte().argmax(dim=1)
        # eos stands at position `length`. Its log-probability counts in the score of the output,
        # but it is no token of it.
        beyond_end = position > row_lengths[:, None]
        log_prob = self.scores.masked_fill(beyond_end, 0).sum(dim=1)
        num_predicted = (row_lengths + config.scored_frame).to(log_prob.dtype)
        score = log_prob / num_predicted**length_penalty

        outside = position >= row_lengths[:, None]
        width = max(1, int(row_lengths.max()))
        tokens = self.tokens.masked_fill(outside, config.pad_token_id)[:, :width]
        token_scores = self.scores.masked_fill(outside, 0)[:, :width]
        lengths = row_lengths.unflatten(0, (-1, copies))
        hypotheses = Hypotheses(
            tokens=tokens.unflatten(0, (-1, copies)),
            token_scores=token_scores.unflatten(0, (-1, copies)),
            lengths=lengths,
            scores=score.unflatten(0, (-1, copies)),
            # A pass for each token of the longest copy, and one for its eos.
            passes=lengths.amax(dim=1) + 1,
        )
        return hypotheses.best_first()
