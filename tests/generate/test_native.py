"""Passes in C++: against the modules in float64, and against themselves in other batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.generate.modes import check_options
from janus_pt.inference.cpu import lay_out_for_cpu
from janus_pt.inference.native import build
from janus_pt.inference.native.layout import lay_out_natively
from janus_pt.inference.native.linear import NativeLinear
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError
from tests.support.models import MODERN, as_source, random_sources, tiny_model

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

VARIANTS: dict[str, dict[str, Any]] = {
    "query": {},
    "content": {"ar_stream": "content", "ar_position_offset": 1},
    "pre-norm, gelu": {"pre_layer_norm": True, "activation": "gelu", "hidden_size": 32},
    "rms norm, silu": {"norm": "rms_norm", "activation": "silu", "positions": "sinusoidal"},
    "heads of 32, bias": {"hidden_size": 64, "vocab_size": 27, "output_bias": True},
    "heads of 64": {"hidden_size": 64, "num_attention_heads": 1, "ffn_hidden_size": 33},
}
NUDGES = 6
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("ar", {}),
    ("ar", {"num_beams": 3}),
    ("ar", {"do_sample": True, "num_return_sequences": 2}),
    ("ar", {"min_length": 5, "forced_eos": True}),
    ("nar", {"iterations": 3, "length_beam": 2}),
    ("speculative", {}),
    ("speculative", {"min_length": 4}),
    ("rerank", {"iterations": 2}),
]


def natively(int8: bool = False, **shape: Any) -> JanusTransformer:
    model = tiny_model(4, torch.float32, **{"max_positions": 80, **shape})
    lay_out_natively(model, int8)
    return model


def by_modules(dtype: torch.dtype, **shape: Any) -> JanusTransformer:
    model = tiny_model(4, dtype, **{"max_positions": 80, **shape})
    lay_out_for_cpu(model)
    return model


def nudged(seed: int, **shape: Any) -> JanusTransformer:
    """The modules in float32, each weight moved by half of its last place, up or down, or not at all.

    A pass of mask-predict masks again what is least sure. Where two slots are nearly as sure, one rounding decides
    which, and the scores jump: one model in float32 may not show it.
    """
    model = tiny_model(4, torch.float32, **{"max_positions": 80, **shape})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            step = torch.randint(-1, 2, weight.shape, generator=generator)
            weight.mul_(1 + step * 2.0**-24)
    lay_out_for_cpu(model)
    return model


def decode(model: JanusTransformer, mode: str, options: dict[str, Any], count: int) -> Hypotheses:
    way = check_options(mode, **{"max_length": 12, **options})
    return way.decode(model, as_source(random_sources(count, count)))


def distance(hypotheses: Hypotheses, exact: Hypotheses) -> float:
    return float((hypotheses.scores - exact.scores).abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("mode", "options"), WAYS)
def test_outputs_are_the_modules(mode: str, options: dict[str, Any], variant: str) -> None:
    """Tokens of the modules in float64, and scores as near to them as theirs in float32."""
    shape = VARIANTS[variant]
    native, exact = natively(**shape), by_modules(torch.float64, **shape)
    rounded = [nudged(seed, **shape) for seed in range(NUDGES)]
    for count in (1, 2, 7):
        expected, ours = decode(exact, mode, options, count), decode(native, mode, options, count)
        rounding = max(distance(decode(m, mode, options, count), expected) for m in rounded)
        allowed = 3 * rounding + 1e-5
        assert distance(ours, expected) <= allowed
        for tokens, others, scores in zip(
            ours.tokens, expected.tokens, expected.scores, strict=True
        ):
            # Of outputs that are as good but for rounding either may come first.
            if scores.max() - scores.min() <= allowed:
                tokens, others = (sorted(outputs.tolist()) for outputs in (tokens, others))
            else:
                tokens, others = tokens.tolist(), others.tolist()
            assert tokens == others


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_does_not_depend_on_the_others(variant: str, int8: bool) -> None:
    """To the last bit: number of rows, padding and reach change nothing."""
    model = natively(int8, **VARIANTS[variant])
    sources = random_sources(3, 8)
    targets = torch.randint(5, 24, (8, 40), generator=torch.Generator().manual_seed(1))

    def steps(chosen: list[int]) -> Tensor:
        with torch.inference_mode():
            batch = as_source([sources[number] for number in chosen])
            decoder = IncrementalDecoder(model, read_sources(model, batch))
            decoder.start(len(chosen))
            return torch.stack([decoder.step(column) for column in targets[chosen].T], dim=1)

    together = steps(list(range(8)))
    for chosen in ([0], [3], [1, 6], [7, 2, 4], [0, 1, 2, 3, 4]):
        assert torch.equal(steps(chosen), together[chosen])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_speculation_writes_what_greedy_search_writes(variant: str, int8: bool) -> None:
    """In int8, too, and with the same scores: a block's rows are computed as single ones are."""
    model = natively(int8, **VARIANTS[variant])
    greedy = decode(model, "ar", {"max_length": 40}, 9)
    drafted = decode(model, "speculative", {"max_length": 40}, 9)
    assert torch.equal(greedy.tokens, drafted.tokens)
    assert torch.equal(greedy.token_scores, drafted.token_scores)


def test_int8_weights_that_are_whole_numbers_are_exact() -> None:
    """Only inputs are rounded, to 16 bits."""

    def round_weights(model: JanusTransformer) -> None:
        # The largest of each row is level 127: what int8 makes of it is the same again.
        with torch.no_grad():
            for module in model.modules():
                weight = getattr(module, "weight", None)
                if isinstance(weight, Tensor) and weight.ndim == 2:
                    scale = weight.abs().amax(dim=1, keepdim=True) / 127
                    weight.copy_((weight / scale).round() * scale)

    native, exact = tiny_model(4, torch.float32), tiny_model(4, torch.float64)
    for model in (native, exact):
        round_weights(model)
    lay_out_natively(native, int8=True)
    source = as_source(random_sources(1, 5))
    with torch.inference_mode():
        ours, expected = native.encode(source), exact.encode(source)
    real = source.samples >= 0
    torch.testing.assert_close(ours[real].double(), expected[real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("inputs", [1, 7, 8, 33, 256])
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 40, 130])
def test_products(outputs: int, inputs: int) -> None:
    """Of any sizes; int8's input is rounded to 16 bits, its weights to 8."""
    generator = torch.Generator().manual_seed(outputs * inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    for rows in (0, 1, 2, 3, 4, 5, 6, 11, 12, 53, 120):
        x = torch.randn(rows, inputs, generator=generator)
        exact = x.double() @ weight.double().T + bias
        ours = NativeLinear(weight, bias)(x)
        # The bound of a sum of so many terms, whatever their order (Higham 2002, section 3.1).
        sizes = x.double().abs() @ weight.double().abs().T + bias.abs()
        assert ((ours - exact).abs() <= (inputs + 1) * 2.0**-24 * sizes).all()
        scale = weight.abs().amax(dim=1) / 127
        rounded = (weight / scale[:, None]).round() * scale[:, None]
        exact = x.double() @ rounded.double().T + bias
        ours = NativeLinear(weight, bias, int8=True)(x)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=3e-4 * inputs**0.5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab_size", [24, 27, 601])
def test_best_tokens(vocab_size: int, threads: int) -> None:
    """Against torch's log-softmax of the same scores; of equal scores the first is taken."""
    model = tiny_model(4, torch.float32, vocab_size=vocab_size)
    weight = model.embed_tokens.get_parameter("weight")
    with torch.no_grad():
        weight[20] = weight[9]
    lay_out_natively(model)
    assert model.native is not None
    hidden = torch.randn(67, 16, generator=torch.Generator().manual_seed(0))
    forbidden = torch.zeros(vocab_size, dtype=torch.bool)
    forbidden[[0, 3, 11, vocab_size - 1]] = True
    log_probs = torch.log_softmax(model.logits(hidden), dim=-1)
    ends = log_probs[:, 2].clone()
    score, token = log_probs.masked_fill(forbidden, -torch.inf).max(dim=-1)
    torch.set_num_threads(threads)
    try:
        best = model.native.best_tokens(hidden, forbidden, 2)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(best.tokens, token)
    torch.testing.assert_close(best.scores, score, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(best.ends, ends, rtol=1e-5, atol=1e-5)


def test_two_threads_compute_the_same() -> None:
    model = natively()
    source = as_source(random_sources(1, 5))
    with torch.inference_mode():
        alone = model.encode(source)
        torch.set_num_threads(2)
        try:
            assert torch.equal(model.encode(source), alone)
        finally:
            torch.set_num_threads(1)


def test_a_copy_writes_the_same() -> None:
    """Packed weights never change: a copy shares them."""
    model = natively()
    other = copy.deepcopy(model)
    expected = decode(model, "ar", {}, 3)
    del model
    ours = decode(other, "ar", {}, 3)
    assert torch.equal(ours.tokens, expected.tokens)
    assert torch.equal(ours.scores, expected.scores)


@pytest.mark.parametrize("int8", [False, True])
def test_weights_are_in_memory_once(int8: bool) -> None:
    """The bytes of all tensors that a model and its native passes hold, by what the weights take."""
    model = tiny_model(4, torch.float32, hidden_size=64, ffn_hidden_size=128, vocab_size=608)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    layers.remove(model.embed_length)
    packed = 4 * sum(parameter.numel() for parameter in model.parameters())
    if int8:
        # A byte instead of four, and a scale; the projection has no longer the embeddings' memory.
        for weight in (layer.weight for layer in layers):
            packed += 4 * len(weight) - 3 * weight.numel()
        packed += 608 * (64 + 4)
    lay_out_natively(model, int8)
    held = {}
    for owner in (model.native, *model.modules()):
        attributes = [*vars(owner).values()]
        for tensor in chain(*(_tensors(attribute) for attribute in attributes)):
            memory = tensor.untyped_storage()
            held[memory.data_ptr()] = memory.nbytes()
    assert sum(held.values()) == packed


def _tensors(attribute: object) -> list[Tensor]:
    """The tensors in a module's attribute, of which some are dictionaries or lists."""
    if isinstance(attribute, Tensor):
        return [attribute]
    parts = attribute.values() if isinstance(attribute, dict) else attribute
    return (
        [part for part in parts if isinstance(part, Tensor)] if isinstance(parts, Iterable) else []
    )


def test_other_layers_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"native: model\.positions: .* leave native out"):
        natively(**MODERN)
    model = tiny_model(4, torch.float64)
    with pytest.raises(UserError, match="native: is for float32 on a CPU"):
        lay_out_natively(model)


@pytest.fixture
def new_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_library.cache_clear()
    yield tmp_path
    build.load_library.cache_clear()


def test_a_compiler_that_fails_is_one_message(
    monkeypatch: pytest.MonkeyPatch, new_cache: Path
) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(UserError, match=r"native: the compiler failed.*CXX.*false"):
        build.load_library()
    assert not list(new_cache.rglob("*.so"))


def test_no_compiler_is_one_message(monkeypatch: pytest.MonkeyPatch, new_cache: Path) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"native: there is no C\+\+ compiler; install g"):
        build.load_library()


def test_the_library_is_compiled_once(new_cache: Path) -> None:
    build.load_library()
    (library,) = new_cache.rglob("*.so")
    written = library.stat().st_mtime_ns
    build.load_library.cache_clear()
    build.load_library()
    assert library.stat().st_mtime_ns == written
