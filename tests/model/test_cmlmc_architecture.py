"""CMLMC's changes to the architecture, against the whole model written down once more in plain operations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from janus_pt.generate.incremental import read_sources
from janus_pt.generate.mask_predict import MaskPredictOptions, mask_predict
from janus_pt.generate.modes import check_options
from janus_pt.generate.refine import read_visible, visible_mask
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.batch import collate
from janus_pt.utils.errors import UserError
from tests.support.examples import make_example_of
from tests.support.models import as_source, random_sources, tiny_model

MASK = 4
OPTIONS = [(True, False), (False, True), (True, True)]


class Written:
    """One sentence through the model, from its weights by name: a loop over heads, no cache, no slots."""

    def __init__(self, model: JanusTransformer) -> None:
        self.weights, self.config = dict(model.named_parameters()), model.config

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].t() + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, x: Tensor, memory: Tensor, may_read: Tensor) -> Tensor:
        size = self.config.hidden_size // self.config.num_attention_heads
        q, k, v = (
            self.linear(f"{name}.{p}_proj", y) for p, y in (("q", x), ("k", memory), ("v", memory))
        )
        heads = []
        for head in range(self.config.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].t() / math.sqrt(size)
            heads.append(scores.masked_fill(~may_read, -math.inf).softmax(-1) @ v[:, part])
        return self.linear(f"{name}.out_proj", torch.cat(heads, -1))

    def sublayer(self, norm: str, x: Tensor, compute: object) -> Tensor:
        if self.config.pre_layer_norm:
            return x + compute(self.norm(norm, x))  # type: ignore[operator]
        return self.norm(norm, x + compute(x))  # type: ignore[operator]

    def embed(self, stack: str, tokens: Tensor) -> Tensor:
        token = self.weights["embed_tokens.weight"][tokens]
        position = self.weights[f"{stack}.embed_positions.weight"][: len(tokens)]
        if self.config.embedding_projection:
            x = (
                torch.cat((token, position), -1)
                @ self.weights[f"{stack}.embed_projection.weight"].t()
            )
        else:
            x = token + position
        return self.norm(f"{stack}.layernorm_embedding", x)

    def stack(self, name: str, tokens: Tensor, memory: Tensor | None, depth: int) -> Tensor:
        x, count = self.embed(name, tokens), len(tokens)
        everything = torch.ones(count, count, dtype=torch.bool)
        for layer in (f"{name}.layers.{index}" for index in range(depth)):
            attentions = [("self_attn", everything)]
            if memory is not None:
                attentions += [
                    ("causal_attn", everything.tril())
                ] * self.config.causal_self_attention
                attentions += [("encoder_attn", torch.ones(count, len(memory), dtype=torch.bool))]
            for part, may_read in attentions:

                def read(
                    h: Tensor, part: str = part, may_read: Tensor = may_read, layer: str = layer
                ) -> Tensor:
                    return self.attention(
                        f"{layer}.{part}", h, memory if part == "encoder_attn" else h, may_read
                    )

                x = self.sublayer(f"{layer}.{part}_layer_norm", x, read)

            def feed_forward(h: Tensor, layer: str = layer) -> Tensor:
                return self.linear(f"{layer}.fc2", F.gelu(self.linear(f"{layer}.fc1", h)))

            x = self.sublayer(f"{layer}.final_layer_norm", x, feed_forward)
        return self.norm(f"{name}.layer_norm", x) if self.config.pre_layer_norm else x

    def hidden(self, source: list[int], target: list[int]) -> Tensor:
        encoded = self.stack("encoder", torch.tensor(source), None, self.config.encoder_layers)
        return self.stack("decoder", torch.tensor(target), encoded, self.config.decoder_layers)


@pytest.mark.parametrize("pre_layer_norm", [False, True])
@pytest.mark.parametrize(("projection", "causal"), OPTIONS)
def test_training_and_decoding_compute_what_is_written(
    projection: bool, causal: bool, pre_layer_norm: bool
) -> None:
    """Slots of three packed samples, and the rows that mask-predict reads, padding beside them."""
    model = tiny_model(
        5,
        embedding_projection=projection,
        causal_self_attention=causal,
        pre_layer_norm=pre_layer_norm,
    )
    rng, sources = np.random.default_rng(0), random_sources(1, 3)
    targets = [np.array([1, *rng.integers(5, 24, n), 2]) for n in (3, 6, 4)]
    masked = [np.array(places) for places in ([2], [1, 3, 4], [1, 2, 3, 4])]
    shown = [target.copy() for target in targets]
    for tokens, places in zip(shown, masked, strict=True):
        tokens[places] = MASK
    with torch.inference_mode():
        expected = [
            Written(model).hidden(source, tokens.tolist())
            for source, tokens in zip(sources, shown, strict=True)
        ]
        made = [
            make_example_of("cmlm", np.array(source), target, places, mask_token_id=MASK)
            for source, target, places in zip(sources, targets, masked, strict=True)
        ]
        batch = collate(made)
        found = model(batch.source, batch.slots)[0][0][batch.predict["nar"]]
        predicted = torch.cat(
            [hidden[places] for hidden, places in zip(expected, masked, strict=True)]
        )
        torch.testing.assert_close(found, predicted, rtol=1e-10, atol=1e-11)

        memory, lengths = (
            read_sources(model, as_source(sources)),
            torch.tensor([len(t) - 2 for t in targets]),
        )
        rows = torch.zeros(3, max(map(len, targets)), dtype=torch.long)
        for row, tokens in enumerate(shown):
            rows[row, : len(tokens)] = torch.from_numpy(tokens)
        read = read_visible(model, memory, rows, visible_mask(lengths + 2, rows.shape[1]))
        for row, hidden in enumerate(expected):
            torch.testing.assert_close(read[row, : len(hidden)], hidden, rtol=1e-10, atol=1e-11)


def test_with_a_causal_self_attention_only_p_nar_decodes() -> None:
    model, source = tiny_model(causal_self_attention=True), as_source(random_sources(0, 2))
    assert (
        mask_predict(
            model, source, MaskPredictOptions(iterations=2, rescore_all=True)
        ).tokens.shape[0]
        == 2
    )
    for mode in ("ar", "rerank", "speculative"):
        with pytest.raises(UserError, match="and no P_AR; decode it with nar"):
            check_options(mode).decode(model, source)
