"""`JanusModel.generate` and `launchers/generate.py`: order, batching, bad arguments, one line in and one line out."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt import JanusModel
from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.generate.modes import check_options
from janus_pt.inference import cpu
from janus_pt.inference.batching import Batching, token_batches
from janus_pt.inference.cpu import Int8Linear
from janus_pt.inference.generation import EMPTY_GENERATION, Generation
from janus_pt.inference.text_files import BATCHES_AT_ONCE, generate_file
from janus_pt.tokenizer import read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.runs import ROOT, run_script

TEXTS = [
    "the mask reads",
    "",
    "the beam writes a token and the slot reads the content",
    "pass",
    "ünï — \u2603",
    "  ",
]


@pytest.fixture(scope="module")
def model() -> JanusModel:
    tokenizer = read_tokenizer(tokenizer_bytes())
    return JanusModel(tiny_model(5, vocab_size=tokenizer.vocab_size, max_positions=64), tokenizer)


@pytest.fixture(scope="module")
def folder(model: JanusModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "export"
    model.save_pretrained(path)
    return path


# --- JanusModel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "ar"},
        {"mode": "ar", "num_beams": 3, "length_penalty": 0.5},
        {"mode": "ar", "do_sample": True, "seed": 4, "top_k": 50},
        {"mode": "nar", "length_beam": 3},
        {"mode": "rerank", "length_beam": 3},
        {"mode": "speculative"},
    ],
)
def test_batches_change_nothing(model: JanusModel, options: dict[str, Any]) -> None:
    alone = [model.generate([text], max_length=9, **options)[0] for text in TEXTS]
    for batch_size in (1, 2, 32):
        together = model.generate(TEXTS, max_length=9, batch_size=batch_size, **options)
        for one, other in zip(alone, together, strict=True):
            assert (one.text, one.tokens, one.decoder_passes) == (
                other.text,
                other.tokens,
                other.decoder_passes,
            )
            np.testing.assert_allclose(
                [one.score, *one.token_scores], [other.score, *other.token_scores], rtol=1e-9
            )
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    assert model.generate(ids, max_length=9, **options) == model.generate(
        TEXTS, max_length=9, **options
    )


def test_a_generation_says_what_it_is(model: JanusModel) -> None:
    for result in model.generate(TEXTS[2:5], mode="nar", iterations=3):
        assert result.text == model.tokenizer.decode(result.tokens)
        assert len(result.token_scores) == len(result.tokens) > 0
        assert result.score == pytest.approx(np.mean(result.token_scores))
        assert result.decoder_passes == 3
    for result in model.generate(TEXTS[2:5], max_length=5):
        assert result.decoder_passes == len(result.tokens) + 1
        assert result.score * result.decoder_passes < sum(result.token_scores)  # eos counts too


def test_several_outputs_for_each_input(model: JanusModel) -> None:
    """One after another, best first; those of an empty input are empty."""
    for options in (
        {"mode": "ar", "num_beams": 4},
        {"mode": "ar", "do_sample": True},
        {"mode": "nar", "length_beam": 3},
        {"mode": "rerank", "length_beam": 3},
    ):
        several = model.generate(TEXTS, num_return_sequences=3, max_length=9, **options)
        best = model.generate(TEXTS, max_length=9, **options)
        assert len(several) == 3 * len(TEXTS) and several[3:6] == [EMPTY_GENERATION] * 3
        for row, one in enumerate(best):
            group = several[3 * row : 3 * row + 3]
            assert [g.score for g in group] == sorted((g.score for g in group), reverse=True)
            if "do_sample" not in options:
                assert group[0].tokens == one.tokens


def test_speculation_says_what_it_drafted(model: JanusModel) -> None:
    greedy = model.generate(TEXTS, max_length=12)
    drafted = model.generate(TEXTS, "speculative", max_length=12)
    assert [g.tokens for g in drafted] == [g.tokens for g in greedy]
    for one in drafted:
        assert 0 <= one.accepted <= min(one.drafted, len(one.tokens))
        assert one.acceptance_rate == (one.accepted / one.drafted if one.drafted else 0)
    assert any(one.drafted for one in drafted)


def test_a_loaded_model_is_the_saved_one(model: JanusModel, folder: Path, tmp_path: Path) -> None:
    """Its weights lie otherwise in memory; they are saved as they were."""
    loaded = JanusModel.from_pretrained(folder)
    assert [g.tokens for g in loaded.generate(TEXTS)] == [g.tokens for g in model.generate(TEXTS)]
    loaded.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_int8_weights_are_near_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = read_tokenizer(tokenizer_bytes())
    whole = JanusModel(
        tiny_model(5, vocab_size=tokenizer.vocab_size, max_positions=64).float(), tokenizer
    )
    whole.save_pretrained(tmp_path / "export")
    small = JanusModel.from_pretrained(tmp_path / "export", quantize="int8")
    assert isinstance(small.model.output_projection, Int8Linear)
    with torch.inference_mode():
        hidden = torch.randn(
            5, whole.config.hidden_size, generator=torch.Generator().manual_seed(1)
        )
        exact, quantised = whole.model.logits(hidden), small.model.logits(hidden)
    # Half a step of the weights for each input, and half a step of the inputs, which have 7 bits, for each weight.
    largest = whole.model.embed_tokens.weight.abs().max() * hidden.abs().max()
    bound = whole.config.hidden_size * largest * (1 / 127 + 1 / 127)
    assert 0 < (exact - quantised).abs().max() < bound
    for smallest in (cpu.SMALLEST_INT8, 1):
        # Layers as small as these stay in float32, unless told otherwise.
        monkeypatch.setattr(cpu, "SMALLEST_INT8", smallest)
        small = JanusModel.from_pretrained(tmp_path / "export", quantize="int8")
        names = {n for n, m in small.model.named_modules() if isinstance(m, Int8Linear)}
        assert ("decoder.layers.0.self_attn.qkv_proj" in names) == (smallest == 1)
        for mode in ("ar", "nar", "rerank", "speculative"):
            assert len(small.generate(TEXTS, mode)) == len(TEXTS)
    with pytest.raises(UserError, match=r"^save_pretrained: the weights are quantised"):
        small.save_pretrained(tmp_path / "again")
    with pytest.raises(UserError, match=r'^quantize: "int8" is for float32'):
        JanusModel.from_pretrained(tmp_path / "export", torch.bfloat16, quantize="int8")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 8), st.integers(1, 100))
def test_batches_keep_their_bounds(lengths: list[int], size: int, tokens: int) -> None:
    batches = list(token_batches(lengths, Batching(size, tokens)))
    assert sorted(i for batch in batches for i in batch) == [i for i, n in enumerate(lengths) if n]
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        assert len(batch) <= size and (len(batch) == 1 or len(batch) * lengths[batch[0]] <= tokens)


def test_an_empty_input_gives_an_empty_output(model: JanusModel) -> None:
    for mode in ("ar", "nar"):
        assert model.generate(["", []], mode=mode) == [Generation("", [], 0.0, [], 0)] * 2
        assert model.generate([], mode=mode) == []


def test_generating_is_not_random(model: JanusModel) -> None:
    state = torch.get_rng_state()
    first = model.generate(TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    model.model.train()
    again = JanusModel(model.model, model.tokenizer).generate(TEXTS)
    assert first == again and not model.model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"mode": "sampling"},
            "mode: there is no 'sampling'; use one of: ar, nar, rerank, speculative",
        ),
        ({"mode": "ar", "iterations": 4}, 'iterations: mode "ar" has no such option; it has '),
        ({"mode": "ar", "length_beam": 2}, 'length_beam: mode "ar" has no'),
        ({"mode": "nar", "num_beams": 2}, 'num_beams: mode "nar" has no'),
        ({"mode": "nar", "length_penalty": 2.0}, 'length_penalty: mode "nar" has no'),
        ({"temperature": 1.0}, "temperature: "),
        ({"num_beams": 0}, "num_beams: .* greater than 0, but is 0"),
        ({"num_beams": "4"}, "num_beams: .* integer, but is '4'"),
        ({"length_penalty": float("nan")}, "length_penalty: "),
        ({"mode": "nar", "iterations": 0}, "iterations: "),
        ({"min_length": -1}, "min_length: "),
        ({"max_length": 63}, "max_length: 63 is more than the 62 tokens"),
        ({"min_length": 9, "max_length": 8}, "min_length: 9"),
        ({"batch_size": 0}, "batch_size: "),
        ({"max_batch_tokens": 0}, "max_batch_tokens: "),
        ({"temperature": 0.5}, "temperature: has no effect without do_sample"),
        ({"seed": 3}, "seed: has no effect without do_sample"),
        ({"do_sample": True, "num_beams": 2}, "num_beams: sampling has no beams"),
        ({"do_sample": True, "top_p": 0.0}, "top_p: "),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences: 3 is more than the 2 beams",
        ),
        (
            {"mode": "nar", "num_return_sequences": 2},
            "num_return_sequences: 2 is more than the 1 lengths",
        ),
        ({"mode": "nar", "length_ratio": 1.2}, "length_ratio: has no effect unless"),
        ({"mode": "nar", "length_prediction": "guess"}, "length_prediction: "),
        ({"mode": "nar", "ar_weight": 0.5}, 'ar_weight: mode "nar" has no such option'),
        ({"mode": "rerank", "ar_weight": 1.5}, "ar_weight: "),
        ({"mode": "speculative", "lossy_margin": 0.5}, "lossy_margin: has no effect unless lossy"),
        ({"mode": "speculative", "num_beams": 2}, 'num_beams: mode "speculative" has no'),
        ({"mode": "speculative", "no_repeat_ngram_size": 2}, "no_repeat_ngram_size: "),
    ],
)
def test_wrong_arguments_are_named(
    model: JanusModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        model.generate(["the mask"], **arguments)


def test_wrong_inputs_are_named(model: JanusModel) -> None:
    with pytest.raises(UserError, match=r"^inputs: .* put it in a list"):
        model.generate("the mask")
    with pytest.raises(
        UserError, match=r"^input 1: 65 tokens with the special ones, the model reads at most 64"
    ):
        model.generate([[7] * 62, [7] * 63])
    for ids in ([-1], [model.config.vocab_size]):
        with pytest.raises(UserError, match=r"^input 0: token ids must be from 0 to"):
            model.generate([ids])


# --- lines -----------------------------------------------------------------------------------------------------------


class Echo:
    """Stands for a model: says what it was given, with line breaks in it."""

    def __init__(self) -> None:
        self.portions: list[int] = []

    def encode(self, text: str, name: str) -> str:
        if text == "long":
            raise UserError(f"{name}: too long")
        return text

    def generate_from_ids(
        self, sources: list[str], options: DecodingOptions, batching: Batching
    ) -> list[Generation]:
        self.portions.append(len(sources))
        return [Generation(f"<{text}\r\n>", [], 0.0, [], 0) for text in sources]


def decoded(tmp_path: Path, content: bytes, model: Any, batch_size: int = 4) -> bytes:
    (tmp_path / "in").write_bytes(content)
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    generate_file(model, source, target, check_options("ar"), Batching(batch_size))
    return (tmp_path / "out").read_bytes()


def test_one_line_in_one_line_out(tmp_path: Path) -> None:
    assert (
        decoded(tmp_path, b"a\r\n\n b\x0bc \xc3\xa9\nlast", Echo()).decode()
        == "<a >\n< >\n< b c é >\n<last >\n"
    )
    assert decoded(tmp_path, b"", Echo()) == b""


def test_lines_are_read_in_bounded_portions(tmp_path: Path) -> None:
    model, portion = Echo(), 4 * BATCHES_AT_ONCE
    lines = [f"{number}" for number in range(2 * portion + 3)]
    output = decoded(tmp_path, "\n".join(lines).encode(), model)
    assert output.decode().splitlines() == [f"<{line} >" for line in lines]
    assert model.portions == [portion, portion, 3]


@pytest.mark.parametrize(("line", "reason"), [(b"long", "too long"), (b"\xff", "not valid UTF-8")])
def test_a_bad_line_is_named_and_portions_before_it_are_written(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    portion = 4 * BATCHES_AT_ONCE
    with pytest.raises(UserError, match=f"in, line {portion + 2}: {reason}"):
        decoded(tmp_path, b"a\n" * (portion + 1) + line + b"\na\n", Echo())
    assert (tmp_path / "out").read_text() == "<a >\n" * portion


# --- the launcher ----------------------------------------------------------------------------------------------------


def test_from_file_to_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    model = JanusModel.from_pretrained(folder)
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    files = (
        "--model",
        folder,
        "--input",
        tmp_path / "in.txt",
        "--output",
        tmp_path / "out.txt",
        "--max-length",
        12,
    )
    for arguments, options in (
        (
            ("--mode", "nar", "--iterations", 2, "--length-beam", 2),
            dict(mode="nar", iterations=2, length_beam=2),
        ),
        (
            ("--num-beams", 2, "--length-penalty", 0.5, "--batch-size", 2),
            dict(num_beams=2, length_penalty=0.5),
        ),
    ):
        assert run_script(monkeypatch, "launchers/generate.py", *files, *arguments) == 0
        expected = [
            " ".join(g.text.splitlines()) for g in model.generate(TEXTS, max_length=12, **options)
        ]
        assert (tmp_path / "out.txt").read_text().split("\n") == [*expected, ""]
    output = capfd.readouterr()
    assert not output.out and output.err.count("6 sentences in") == 2


@pytest.mark.slow
def test_several_processes_write_what_one_writes(folder: Path, tmp_path: Path) -> None:
    """Five portions for two processes, in order."""
    lines = [f"{TEXTS[i % len(TEXTS)]} {i}" for i in range(2 * BATCHES_AT_ONCE * 2 + 5)]
    (tmp_path / "in").write_text("\n".join(lines) + "\n")
    load = partial(JanusModel.from_pretrained, folder)
    options = check_options("speculative", max_length=6)
    source = str(tmp_path / "in")
    for workers in (1, 2):
        target = str(tmp_path / f"out{workers}")
        count = generate_file(load(), source, target, options, Batching(1), workers, load)
        assert count == len(lines)
    assert (tmp_path / "out1").read_bytes() == (tmp_path / "out2").read_bytes()


def test_in_a_pipe(folder: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "launchers/generate.py"),
        "--model",
        str(folder),
        "--mode",
        "nar",
        "--dtype",
        "bfloat16",
    ]
    done = subprocess.run(
        command, input=b"the mask\n\nthe beam", capture_output=True, timeout=120, check=True
    )
    assert done.stdout.count(b"\n") == 3 and done.stdout.split(b"\n")[1] == b""
    assert b"3 sentences in " in done.stderr and b" sentences/s" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "nowhere: no exported model here, config.json is missing"),
        ({"--input": "nowhere"}, "nowhere: cannot be opened: No such file"),
        ({"--output": "no/where"}, "no/where: cannot be opened"),
        ({"--output": "in.txt"}, "in.txt: input and output are one file"),
        ({"--iterations": "3"}, 'iterations: mode "ar" has no such option'),
        ({"--num-beams": "0"}, "num_beams: "),
        ({"--batch-size": "0"}, "batch_size: "),
        ({"--workers": "0"}, "workers: "),
        ({"--top-k": "3"}, "top_k: has no effect without do_sample"),
        ({"--quantize": "int8", "--dtype": "bfloat16"}, 'quantize: "int8" is for float32'),
        ({"--max-length": "1000"}, "max_length: 1000 is more than"),
        ({"--input": "long.txt"}, "long.txt, line 2: "),
    ],
)
def test_mistakes_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("the mask\n")
    Path("long.txt").write_text("the mask\n" + "the mask " * 100)
    arguments = {"--model": str(folder), "--input": "in.txt", "--output": "out.txt", **changes}
    assert run_script(monkeypatch, "launchers/generate.py", *chain(*arguments.items())) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1
    assert Path("in.txt").read_text() == "the mask\n"
