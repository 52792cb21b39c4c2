"""The model and every loss term against numbers computed with the authors' code.

Run against any folder in the same format: JANUS_GOLDENS=DIR pytest tests/objectives/test_reference_parity.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from janus_pt.model.layer_factory import partition_dim
from janus_pt.model.masks import readable
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.fused_loss import Terms, fused_losses
from janus_pt.objectives.janus import PAIRS, STREAMS
from janus_pt.packing.row_layout import pack_row
from janus_pt.parallel import groups
from janus_pt.parallel.tensor import (
    local_shard,
    tensor_parallel_layers,
    vocab_shard,
)
from tests.support.goldens import DENOISING, SHAPES, TRANSLATION, Golden, needs_goldens
from tests.support.ranks import run_ranks

pytestmark = needs_goldens

CASES = [(name, edge) for name in TRANSLATION for edge in (False, True)] + [
    (name, False) for name in DENOISING
]
LOSS_KEYS = {
    "mt": ("ls_ar", "ls_nar", "ls_aux", "kl_ar_aux", "kl_nar_aux", "kl_ar_nar"),
    "bart": ("nll_ar_sum", "nll_nar_sum", "nll_aux_sum", "kl_ar_aux_sum", "kl_nar_aux_sum"),
}


@pytest.fixture(params=CASES, ids=lambda case: case[0] + ("-edge" if case[1] else ""))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(*request.param)


def tolerance(golden: Golden) -> float:
    """The reference keeps its sinusoidal table in float32."""
    return 1e-5 if SHAPES[golden.name]["positions"] == "sinusoidal" else 1e-9


ROUNDING = 1e-15
"""Gradients of key biases are zero in exact arithmetic (softmax ignores a shift): both sides hold rounding noise."""


def assert_close(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Within `relative` of the largest number compared."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max() + ROUNDING


def ar_path_is_sound(golden: Golden) -> bool:
    """The reference's pre-LN AR path normalises the residual instead of the query; ours is ordinary pre-LN."""
    return not golden.config.pre_layer_norm


class Outputs:
    """One forward pass of a golden batch.

    The denoising reference leaves out the decoder's embedding LayerNorm in its NAR/AUX pass and has it in its AR
    pass, so there the decoder runs twice and each stream is taken from the pass that does what the reference does.
    With a `model`, maybe a sharded one, that is the one that runs.
    """

    def __init__(self, golden: Golden, model: JanusTransformer | None = None) -> None:
        self.golden, self.model, self.batch = golden, model or golden.model(), golden.batch()
        self.vocab = vocab_shard(self.model.embed_tokens, golden.config.vocab_size)
        model, batch = self.model, self.batch
        self.encoder_out = model.encode(batch.source)
        self.length_logits = model.length_logits(self.encoder_out, batch.source)
        hidden = model.decode(batch.slots, self.encoder_out, batch.source).flatten(0, 1)
        plain = hidden
        if golden.denoising:
            norm, model.decoder.layernorm_embedding = (
                model.decoder.layernorm_embedding,
                torch.nn.Identity(),
            )
            plain = model.decode(batch.slots, self.encoder_out, batch.source).flatten(0, 1)
            model.decoder.layernorm_embedding = norm
        self.hidden = {s: (hidden if s == "ar" else plain)[batch.predict[s]] for s in STREAMS}

    def logits(self, stream: str) -> Tensor:
        return self.model.logits(self.hidden[stream])

    def losses(self, coefficients: Tensor, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
        terms = Terms(STREAMS, PAIRS, smoothing)
        weight = self.model.embed_tokens.weight
        total, sums = fused_losses(
            self.hidden, weight, self.batch.targets, coefficients, terms, self.vocab
        )
        return total, dict(zip(terms.names, sums, strict=True))


def expected_stream(golden: Golden, stream: str) -> Tensor:
    """The reference's logits of a stream in the order of our targets: masked positions first, sample by sample."""
    if stream == "nar":
        if not golden.denoising:
            return golden.expected("nar_logits_at_mask_slots")
        slots = ~torch.from_numpy(golden.batch_array("nar_content_m"))
        return golden.expected("content_logits")[slots]
    if stream == "aux":
        real = torch.from_numpy(golden.batch_array("nar_query_w")) != golden.config.pad_token_id
        return golden.expected("aux_logits")[real]
    logits = golden.expected("ar_logits")
    masked = ~torch.from_numpy(golden.batch_array("ar_mask"))
    real = torch.from_numpy(golden.batch_array("ar_target")) != golden.config.pad_token_id
    return torch.cat((logits[masked], logits[real & ~masked]))


def test_encoder_and_length(golden: Golden) -> None:
    ours = Outputs(golden)
    real = ours.batch.source.samples >= 0
    theirs = golden.expected("encoder_out")[
        torch.from_numpy(golden.batch_array("src_tokens")) != golden.config.pad_token_id
    ]
    assert_close(ours.encoder_out[real], theirs, tolerance(golden))
    if not golden.denoising:
        assert_close(ours.length_logits, golden.expected("length_logits"), tolerance(golden))


@pytest.mark.parametrize("stream", STREAMS)
def test_logits(golden: Golden, stream: str) -> None:
    if stream == "ar" and not ar_path_is_sound(golden):
        pytest.skip("the reference's pre-LN AR path is not ours")
    assert_close(Outputs(golden).logits(stream), expected_stream(golden, stream), tolerance(golden))


def test_masks_expand_from_the_visibility_function(golden: Golden) -> None:
    slots = golden.batch().slots
    mask = readable(slots.table[0], slots.table[0, : slots.num_content])
    for row, (example, columns) in enumerate(
        zip(golden.examples(), pack_row(golden.examples()).positions, strict=True)
    ):
        ar, keys = len(example.query) - len(example.predict["aux"]), len(example.content)
        a, b = keys - ar, len(example.predict["aux"])
        causal = torch.ones(ar, ar, dtype=torch.bool).tril()
        content = torch.from_numpy(golden.batch_array("content_mask"))[row, :a, :a] == 0
        query = torch.from_numpy(golden.batch_array("query_mask"))[row, :b, :a] == 0
        ours = mask[columns][:, columns[:keys]]
        assert torch.equal(ours[:ar, :ar], causal)
        assert torch.equal(ours[keys : keys + ar, :ar], causal)
        assert torch.equal(ours[ar:keys, ar:keys], content)
        assert torch.equal(ours[keys + ar :, ar:keys], query)
        assert (
            mask[columns].sum() == ours.sum() == 2 * causal.sum() + content.sum() + query.sum()
        ), "AR and NAR slots met"


def coefficients_of(golden: Golden, batch_sizes: dict[str, int]) -> tuple[Tensor, float]:
    """The reference's weights over its normalisers, in our order of terms; and its label smoothing."""
    if golden.denoising:
        return torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.0], dtype=torch.float64), 0.0
    ar, masked = batch_sizes["ar"], batch_sizes["nar"]
    return torch.tensor(
        [1 / ar, 0.5 / masked, 0.5 / masked, 3 / masked, 1 / masked, 1 / masked],
        dtype=torch.float64,
    ), 0.1


def total_and_terms(ours: Outputs) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
    sizes = {stream: len(index) for stream, index in ours.batch.predict.items()}
    coefficients, smoothing = coefficients_of(ours.golden, sizes)
    total, sums = ours.losses(coefficients, smoothing)
    if not ours.golden.denoising:
        classes = ours.batch.lengths.clamp(max=ours.golden.config.length_classes - 1)
        total = total + 0.1 * torch.nn.functional.cross_entropy(ours.length_logits, classes)
    return total, sums, sizes


def check_losses(ours: Outputs) -> Tensor:
    """Compare every term and the total, which is returned."""
    golden = ours.golden
    total, sums, sizes = total_and_terms(ours)
    keys = LOSS_KEYS["bart" if golden.denoising else "mt"]
    normalisers = [sizes["ar"]] + [sizes["nar"]] * 5
    for key, (name, value), normaliser in zip(keys, sums.items(), normalisers, strict=False):
        if "ar" in name.split("/")[1].split("_") and not ar_path_is_sound(golden):
            continue
        scale = 1 if golden.denoising else normaliser
        assert_close(value / scale, golden.expected(f"loss/{key}"), tolerance(golden))
    if ar_path_is_sound(golden):
        assert_close(total, golden.expected("loss/total"), tolerance(golden))
    return total


def test_loss_terms(golden: Golden) -> None:
    check_losses(Outputs(golden))


def test_all_gradients(golden: Golden) -> None:
    if golden.edge or not ar_path_is_sound(golden):
        pytest.skip("the reference has gradients of its main batch, and an unsound pre-LN AR path")
    ours = Outputs(golden)
    total_and_terms(ours)[0].backward()
    theirs = golden.gradients()
    found = {name: p.grad for name, p in ours.model.named_parameters() if p.grad is not None}
    assert found.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert_close(found[name], gradient, tolerance(golden))
    norm = torch.stack([g.square().sum() for g in found.values()]).sum().sqrt()
    assert_close(norm, golden.expected("grad_norm"), tolerance(golden))


def test_edge_gradient_norm() -> None:
    for name in TRANSLATION:
        golden = Golden(name, edge=True)
        if not ar_path_is_sound(golden):
            continue
        ours = Outputs(golden)
        total_and_terms(ours)[0].backward()
        squares = [p.grad.square().sum() for p in ours.model.parameters() if p.grad is not None]
        assert_close(
            torch.stack(squares).sum().sqrt(), golden.expected("grad_norm"), tolerance(golden)
        )


@pytest.mark.slow
def test_all_of_it_on_two_tensor_parallel_ranks() -> None:
    assert run_ranks(check_sharded, 2, CASES) == [len(CASES)] * 2


def check_sharded(cases: list[tuple[str, bool]]) -> int:
    """Encoder output, logits, loss terms and gradients of this rank's shards."""
    groups.initialize(tensor_parallel_size=2)
    for name, edge in cases:
        golden = Golden(name, edge)
        ours = Outputs(golden, golden.model(tensor_parallel_layers(), local_shard))
        real = torch.from_numpy(golden.batch_array("src_tokens")) != golden.config.pad_token_id
        theirs = golden.expected("encoder_out")[real]
        assert_close(ours.encoder_out[ours.batch.source.samples >= 0], theirs, tolerance(golden))
        for stream in STREAMS if ar_path_is_sound(golden) else STREAMS[1:]:
            weight = ours.model.embed_tokens.weight[: ours.vocab.size - ours.vocab.start]
            columns = slice(ours.vocab.start, ours.vocab.start + len(weight))
            assert weight.shape[0] < ours.vocab.size
            whole = expected_stream(golden, stream)
            difference = ours.hidden[stream] @ weight.t() - whole[:, columns]
            assert difference.abs().max() <= tolerance(golden) * whole.abs().max()
        check_losses(ours).backward()
        if edge or not ar_path_is_sound(golden):
            continue
        gradients = golden.gradients()
        for key, parameter in ours.model.named_parameters():
            if parameter.grad is not None:
                whole = gradients[key]
                difference = parameter.grad - local_shard(parameter, whole)
                assert difference.abs().max() <= tolerance(golden) * whole.abs().max() + ROUNDING, (
                    key
                )
        assert partition_dim(ours.model.encoder.layers[0].fc2.weight) == 1
    groups.shutdown()
    return len(cases)
