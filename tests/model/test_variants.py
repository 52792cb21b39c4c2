"""Every kind of norm, feed-forward network, positions and heads, against a second implementation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from janus_pt.checks import read_config
from janus_pt.config.schema import ModelConfig
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.generate.modes import MODES, check_options
from janus_pt.generate.refine import read_visible, visible_mask
from janus_pt.model.attention import attend
from janus_pt.model.block_masks import slots_block_mask
from janus_pt.model.feed_forward import ACTIVATIONS, FEED_FORWARDS
from janus_pt.model.initialize import initialize_weights
from janus_pt.model.masks import readable
from janus_pt.model.norms import NORMS, make_norm
from janus_pt.model.positions import POSITIONS, make_rotation
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.batch import Batch, collate
from janus_pt.utils.errors import UserError
from tests.support.examples import make_example_of
from tests.support.models import as_source, random_sources, tiny_model
from tests.support.plain_transformer import PlainTransformer
from tests.support.runs import write_run_config

BOS, MASK = 1, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "rms_norm": {"norm": "rms_norm"},
    "rms_norm, pre": {"norm": "rms_norm", "pre_layer_norm": True, "embedding_layer_norm": False},
    "swiglu": {"feed_forward": "gated", "activation": "silu"},
    "geglu": {"feed_forward": "gated", "activation": "gelu"},
    "silu": {"activation": "silu"},
    "marian": {"positions": "marian", "output_bias": True, "activation": "gelu_tanh"},
    "rotary": {"positions": "rotary"},
    "rotary, one head": {"positions": "rotary", "num_attention_heads": 1},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1, "positions": "sinusoidal"},
    "all": {
        "norm": "rms_norm",
        "pre_layer_norm": True,
        "feed_forward": "gated",
        "activation": "silu",
        "positions": "rotary",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "embedding_layer_norm": False,
        "scale_embedding": True,
    },
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def batch(offset: int = 1) -> Batch:
    """Three packed samples of different lengths."""
    rng = np.random.default_rng(0)
    examples = []
    for count in range(3):
        source = np.array([1, *rng.integers(5, 24, 2 + 3 * count), 2])
        target = np.array([1, *rng.integers(5, 24, 4 + 2 * count), 2])
        masked = np.array([1, 3, 4])
        examples.append(make_example_of("janus", source, target, masked, position_offset=offset))
    return collate(examples)


def plain_hidden(model: JanusTransformer, made: Batch) -> Tensor:
    """Hidden states of the slots that predict, by the second implementation."""
    source, slots = made.source, made.slots
    tokens = torch.stack((source.tokens[0], source.positions[0], source.samples[0]), dim=1)
    hidden = PlainTransformer(model).forward(tokens, slots.table[0], slots.num_content)
    return hidden[slots.first_predicting :]


@variants
def test_training_computes_what_is_written(variant: dict[str, Any]) -> None:
    """Packed slots through the sample-by-sample path, with and without gradients, and these too."""
    model, made = tiny_model(3, **variant), batch()
    predicting = torch.cat(list(made.predict.values()))
    expected = plain_hidden(model, made)[predicting]
    weight = torch.arange(expected.shape[1], dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)

    hidden = model(made.source, made.slots)[0][0][predicting]
    torch.testing.assert_close(hidden, expected, rtol=1e-9, atol=1e-10)
    found = torch.autograd.grad((hidden * weight).sum(), parameters, allow_unused=True)
    for name, ours, theirs in zip(names, found, gradients, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    with torch.inference_mode():
        kernel = model(made.source, made.slots)[0][0][predicting]
    torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-10)


@variants
def test_block_masks_compute_what_dense_masks_do(
    variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention, in its eager form on a CPU."""
    model, made = tiny_model(3, **variant), batch()
    with torch.inference_mode():
        expected = model(made.source, made.slots)[0][0]
        monkeypatch.setattr(JanusTransformer, "uses_block_masks", lambda *_: True)
        found = model(made.source, made.slots)[0][0]
    predicting = torch.cat(list(made.predict.values()))
    torch.testing.assert_close(found[predicting], expected[predicting], rtol=1e-9, atol=1e-10)


@variants
@pytest.mark.parametrize(("offset", "stream"), [(0, "query"), (1, "query"), (1, "content")])
def test_the_cache_changes_nothing(variant: dict[str, Any], offset: int, stream: str) -> None:
    """Step by step, and in blocks from other positions in each row, against one pass of plain operations."""
    model = tiny_model(1, ar_position_offset=offset, ar_stream=stream, **variant)
    sources = random_sources(2, 2)
    tokens = torch.from_numpy(np.random.default_rng(3).integers(5, 24, (2, 9)))
    tokens[:, 0] = BOS
    with torch.inference_mode():
        memory = read_sources(model, as_source(sources))
        stepwise = IncrementalDecoder(model, memory)
        steps = torch.stack([stepwise.step(column) for column in tokens.T], dim=1)
        in_blocks = IncrementalDecoder(model, memory)
        in_blocks.read_block(tokens[:, :4], torch.tensor([0, 0]), 4)
        start = torch.tensor([2, 4])
        block = torch.stack([tokens[0, 2:7], tokens[1, 4:9]])
        blocks = in_blocks.read_block(block, start, 9)
    for row, source in enumerate(sources):
        expected = causal_log_probabilities(model, source, tokens[row], offset, stream)
        torch.testing.assert_close(steps[row], expected, rtol=1e-9, atol=1e-10)
        at = int(start[row])
        torch.testing.assert_close(blocks[row], expected[at : at + 5], rtol=1e-9, atol=1e-10)


def causal_log_probabilities(
    model: JanusTransformer, source: list[int], tokens: Tensor, offset: int, stream: str
) -> Tensor:
    """Of the token after each one, left to right, by the second implementation."""
    count = len(tokens)
    order = torch.arange(count)
    zeros = torch.zeros_like(order)
    contents = torch.stack((tokens, order + offset, zeros, order, order + 1, zeros, zeros), dim=1)
    slots = contents
    if stream == "query":
        queries = contents.clone()
        queries[:, 0] = MASK
        queries[:, 3] = -1
        slots = torch.cat((contents, queries))
    read = torch.tensor(source)
    tokens_read = torch.stack((read, torch.arange(len(read)), torch.zeros_like(read)), dim=1)
    hidden = PlainTransformer(model).forward(tokens_read, slots, count)[-count:]
    return PlainTransformer(model).scores(hidden).log_softmax(-1).detach()


@variants
def test_masks_are_filled_as_written(variant: dict[str, Any]) -> None:
    """P_NAR's decoder pass, rows of different lengths padded side by side."""
    model, sources = tiny_model(5, **variant), random_sources(1, 3)
    lengths = torch.tensor([3, 6, 4])
    rng = np.random.default_rng(0)
    rows = torch.zeros(3, 8, dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        rows[row, : length + 2] = torch.tensor([1, *rng.integers(4, 24, length), 2])
    with torch.inference_mode():
        memory = read_sources(model, as_source(sources))
        hidden = read_visible(model, memory, rows, visible_mask(lengths + 2, 8))
    for row, (source, length) in enumerate(zip(sources, lengths.tolist(), strict=True)):
        count = length + 2
        order = torch.arange(count)
        zeros = torch.zeros_like(order)
        everything = torch.full_like(order, count)
        slots = torch.stack(
            (rows[row, :count], order, zeros, order, everything, zeros, zeros), dim=1
        )
        read = torch.tensor(source)
        tokens = torch.stack((read, torch.arange(len(read)), torch.zeros_like(read)), dim=1)
        expected = PlainTransformer(model).forward(tokens, slots, count)
        torch.testing.assert_close(hidden[row, :count], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variant", [VARIANTS["all"]], ids=["all"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_decodes(variant: dict[str, Any], mode: str) -> None:
    """A sentence alone and beside others gets the same output; speculation, which is lossless, P_AR's."""
    model = tiny_model(2, **variant)
    sources = random_sources(4, 3)
    options = check_options(mode)
    together = options.decode(model, as_source(sources))
    for row, source in enumerate(sources):
        alone = options.decode(model, as_source([source]))
        length = int(alone.lengths[0, 0])
        assert int(together.lengths[row, 0]) == length
        assert torch.equal(alone.tokens[0, 0, :length], together.tokens[row, 0, :length])
        assert torch.allclose(alone.scores[0, 0], together.scores[row, 0], rtol=1e-9)


def test_the_names_of_the_configuration_are_the_kinds_there_are() -> None:
    fields = ModelConfig.model_fields
    for name, kinds in (
        ("norm", NORMS),
        ("feed_forward", FEED_FORWARDS),
        ("positions", POSITIONS),
        ("activation", ACTIVATIONS),
    ):
        assert get_args(fields[name].annotation) == tuple(kinds), name


def test_rotated_scores_depend_on_distances_alone() -> None:
    config = tiny_model(positions="rotary").config
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 6, 8, dtype=torch.float64).unbind(0)
    scores = []
    for shift in (0, 5, 100):
        rotation = make_rotation(config, torch.arange(6)[None] + shift, torch.float64)
        assert rotation is not None
        scores.append(rotation.apply(query) @ rotation.apply(key).transpose(2, 3))
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0])
    assert not torch.allclose(scores[0], query @ key.transpose(2, 3))


def test_far_positions_are_told_apart_in_bfloat16() -> None:
    config = tiny_model(positions="rotary").config
    rotation = make_rotation(config, torch.tensor([[1000, 1001]]), torch.bfloat16)
    assert rotation is not None and rotation.cos.dtype == torch.bfloat16
    expected = torch.tensor([1000.0, 1001.0]).cos()
    torch.testing.assert_close(rotation.cos[0, 0, :, 0].float(), expected, rtol=0, atol=4e-3)


def test_rotary_positions_have_no_table() -> None:
    model = tiny_model(positions="rotary")
    assert not [name for name in model.state_dict() if "positions" in name]


def test_a_model_with_grouped_heads_has_small_key_projections() -> None:
    model = tiny_model(num_attention_heads=4, num_key_value_heads=1)
    attention = model.decoder.layers[0].encoder_attn
    assert attention.k_proj.weight.shape == (4, 16) and attention.q_proj.weight.shape == (16, 16)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_grouped_heads_are_repeated_heads(dropout: float) -> None:
    """Both dense paths and FlexAttention against keys and values copied for each query head."""
    torch.manual_seed(0)
    queries = torch.randn(1, 6, 32, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 1, 2, 32, 8, dtype=torch.float64).unbind(0)
    many_keys = torch.stack([keys[:, head // 3] for head in range(6)], dim=1)
    many_values = torch.stack([values[:, head // 3] for head in range(6)], dim=1)
    for leaf in (queries, queries.clone().requires_grad_()):
        results = []
        for k, v in ((keys, values), (many_keys, many_values)):
            torch.manual_seed(1)
            results.append(attend(leaf, k, v, None, dropout))
        torch.testing.assert_close(results[0], results[1])
    slots = batch().slots
    mask = slots_block_mask(slots, 0)
    rows, contents = slots.table.shape[1], slots.num_content
    queries = torch.randn(1, 6, rows, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 1, 2, contents, 8, dtype=torch.float64).unbind(0)
    reads = readable(slots.table[0], slots.table[0, :contents])[None, None]
    real = slots.samples[0] >= 0
    dense = attend(queries, keys, values, reads, 0.0)
    torch.testing.assert_close(
        attend(queries, keys, values, mask, 0.0)[:, :, real], dense[:, :, real]
    )


# --- Against the modules of transformers -------------------------------------------------------


def test_rms_norm_is_llamas() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = tiny_model(norm="rms_norm").config
    ours, theirs = make_norm(config).double(), llama.LlamaRMSNorm(16, eps=1e-5)
    torch.manual_seed(0)
    weight, x = torch.randn(16, dtype=torch.float64), torch.randn(3, 5, 16)
    ours.weight.data = weight
    theirs.weight.data = weight
    # Theirs computes in float32 whatever the input's type.
    torch.testing.assert_close(ours(x.double()), theirs(x).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_gated_network_is_llamas(activation: str) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = llama.LlamaConfig(**shape, hidden_act=activation, mlp_bias=True)
    theirs = llama.LlamaMLP(config).double()
    layer = tiny_model(feed_forward="gated", activation=activation).encoder.layers[0]
    layer.gate_proj.load_state_dict(theirs.gate_proj.state_dict())
    layer.fc1.load_state_dict(theirs.up_proj.state_dict())
    layer.fc2.load_state_dict(theirs.down_proj.state_dict())
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(layer._feed_forward(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_rotary_positions_are_llamas() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = tiny_model(positions="rotary").config
    positions = torch.tensor([[0, 1, 2, 9, 23], [5, 5, 0, 1, 700]])
    query, key = torch.randn(2, 2, 2, 5, 8).unbind(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "head_dim": 8}
    table = llama.LlamaRotaryEmbedding(llama.LlamaConfig(**shape))
    theirs = llama.apply_rotary_pos_emb(query, key, *table(query, positions))
    rotation = make_rotation(config, positions, torch.float32)
    assert rotation is not None
    for ours, expected in zip((rotation.apply(query), rotation.apply(key)), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_new_weights_of_every_kind() -> None:
    """Norms one, biases zero, matrices normal; the same whatever the other kinds are."""
    shape = {"vocab_size": 24, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 4}
    models = []
    for variant in (VARIANTS["all"], {"num_attention_heads": 4}):
        model = JanusTransformer(ModelConfig.model_validate({**shape, **variant, "init_std": 0.2}))
        initialize_weights(model, seed=0)
        models.append(dict(model.named_parameters()))
    ours, plain = models
    assert ours["decoder.layers.0.final_layer_norm.weight"].eq(1).all()
    assert "decoder.layers.0.final_layer_norm.bias" not in ours
    assert ours["decoder.layers.0.gate_proj.bias"].eq(0).all()
    assert abs(float(ours["decoder.layers.0.gate_proj.weight"].detach().std()) - 0.2) < 0.05
    for name in ("embed_tokens.weight", "encoder.layers.2.fc1.weight"):
        assert torch.equal(ours[name], plain[name])


# --- Bad values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__num_key_value_heads": 3, "model__num_attention_heads": 4},
            "model.num_key_value_heads: must divide model.num_attention_heads (4), but is 3",
        ),
        (
            {"model__num_key_value_heads": 1, "parallel__tensor_parallel_size": 2},
            "parallel.tensor_parallel_size: 2 does not divide model.num_key_value_heads (1)",
        ),
        (
            {"model__positions": "rotary", "model__hidden_size": 30},
            "model.positions: heads of 15 elements cannot be rotated in pairs",
        ),
        (
            {"model__positions": "rotary", "model__embedding_projection": True},
            "model.embedding_projection: joins the embeddings of tokens and positions",
        ),
        ({"model__norm": "rmsnorm"}, 'model.norm: must be "layer_norm"'),
    ],
)
def test_values_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_config(write_run_config(tmp_path, **changes))
