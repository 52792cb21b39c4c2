"""How often decoding makes the host wait for the device, counted on a CPU by what would wait on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from janus_pt.generate import active_rows, autoregressive, beam
from janus_pt.generate.modes import check_options
from janus_pt.model.attention import kernels_for_decoding
from tests.support.models import as_source, random_sources, tiny_model

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh"}
"""Operators that copy a value to the host, make a shape of data, or copy a list to the device."""


class Waits(TorchDispatchMode):
    """Counts those operators, indexing by boolean tensors, and whole tensors copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        by_boolean = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += name in READS or by_boolean
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """`tolist` runs no operator on a CPU: its calls are counted."""
    waits, to_list = Waits(), torch.Tensor.tolist

    def count(tensor: torch.Tensor) -> Any:
        waits.count += 1
        return to_list(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", count)
    with waits:
        yield waits


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = active_rows.looks_for_finished
    gpu = torch.device("cuda")
    for module in (autoregressive, beam):
        monkeypatch.setattr(module, "looks_for_finished", lambda *step, **_: looks(*step[:3], gpu))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_greedy_search_looks_every_eight_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = tiny_model(1, max_positions=40), as_source(random_sources(1, 5))
    options = check_options("ar", min_length=31, max_length=31)
    with counted(monkeypatch) as waits:
        options.decode(model, sources)
    # No output can end before the 31st token: one look there, and one for the longest output.
    assert waits.count <= 2
    options = check_options("ar", max_length=31)
    with counted(monkeypatch) as waits:
        steps = int(options.decode(model, sources).passes.max())
    # A look that finds finished sentences makes the indices of the others.
    assert waits.count <= 2 * (steps // 8 + 1) + 2


@pytest.mark.usefixtures("as_on_a_gpu")
def test_beam_search_looks_every_eight_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = tiny_model(1, max_positions=40), as_source(random_sources(1, 5))
    options = check_options("ar", num_beams=3, max_length=31)
    with counted(monkeypatch) as waits:
        steps = int(options.decode(model, sources).passes.max())
    assert waits.count <= 2 * (steps // 8 + 1) + 2


OTHER_WAYS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 2},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 2, "late_stopping": True},
    {"num_beams": 4, "length_penalty": 2.0, "min_length": 2},
]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("options", OTHER_WAYS)
def test_outputs_do_not_depend_on_when_one_looks(options: dict[str, Any]) -> None:
    model, sources = tiny_model(2), as_source(random_sources(2, 6))
    late = check_options("ar", max_length=11, **options).decode(model, sources)
    with pytest.MonkeyPatch.context() as patch:
        for module in (autoregressive, beam):
            patch.setattr(module, "looks_for_finished", lambda *step: True)
        early = check_options("ar", max_length=11, **options).decode(model, sources)
    assert torch.equal(early.lengths, late.lengths) and torch.equal(early.tokens, late.tokens)
    torch.testing.assert_close(early.scores, late.scores, rtol=1e-12, atol=0)
    assert torch.equal(early.passes, late.passes)


@pytest.mark.parametrize("iterations", [1, 4, 10])
def test_mask_predict_asks_for_the_lengths_once(
    monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    model, sources = tiny_model(3), as_source(random_sources(3, 5))
    options = check_options("nar", iterations=iterations, max_length=12)
    with counted(monkeypatch) as waits:
        options.decode(model, sources)
    assert waits.count <= 1


def test_speculation_looks_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = tiny_model(4), as_source(random_sources(4, 5))
    rounds = 0
    read_block = autoregressive.IncrementalDecoder.read_block

    def counting(*args: Any) -> torch.Tensor:
        nonlocal rounds
        rounds += 1
        return read_block(*args)

    monkeypatch.setattr(autoregressive.IncrementalDecoder, "read_block", counting)
    options = check_options("speculative", max_length=12)
    with counted(monkeypatch) as waits:
        options.decode(model, sources)
    # One for each round, and one before the first.
    assert rounds > 2 and waits.count <= rounds + 1


def test_cudnn_is_kept_out_of_decoding() -> None:
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    with kernels_for_decoding(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    with kernels_for_decoding(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
