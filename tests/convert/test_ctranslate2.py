"""CTranslate2 itself decodes what was written for it, and its outputs are compared with ours."""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus_pt import JanusModel
from janus_pt.convert.ctranslate2 import (
    given_with_texts,
    unsupported,
    vocabulary,
    write_ctranslate2,
)
from janus_pt.export.folder import load_export
from janus_pt.export.from_huggingface import convert_huggingface
from janus_pt.export.to_ctranslate2 import add_arguments, export_to_ctranslate2, run
from janus_pt.generate.autoregressive import AutoregressiveOptions, autoregressive
from janus_pt.generate.constraints import Rules
from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.incremental import IncrementalDecoder, read_sources
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.example import framed
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError
from tests.convert.test_huggingface_commands import SAVE as HUGGING_FACE
from tests.convert.test_huggingface_commands import TEXTS as HUGGING_FACE_TEXTS
from tests.support.doors import write_export
from tests.support.models import as_source, tiny_model

ctranslate2 = pytest.importorskip("ctranslate2")

SIZE, SOURCE_SIZE, LONGEST, EOS = 70, 90, 15, 2
SHAPE: dict[str, Any] = dict(
    vocab_size=SIZE,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    encoder_layers=2,
    max_positions=48,
    ar_stream="content",
)
SHAPES: dict[str, dict[str, Any]] = {
    "post-LN": {},
    "post-LN without embedding LN": {"embedding_layer_norm": False},
    "pre-LN": {"pre_layer_norm": True},
    "pre-LN without embedding LN": {"pre_layer_norm": True, "embedding_layer_norm": False},
    "sinusoidal": {
        "positions": "sinusoidal",
        "scale_embedding": True,
        "embedding_layer_norm": False,
        "activation": "relu",
    },
    "two vocabularies": {"source_vocab_size": SOURCE_SIZE, "ar_position_offset": 0},
    "grouped heads": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1, "encoder_layers": 1, "decoder_layers": 3},
    "RMSNorm": {"norm": "rms_norm"},
    "gated SiLU": {"feed_forward": "gated", "activation": "silu"},
    "rotary": {"positions": "rotary"},
    # Targets begin with pad, whose row is not zero here: CTranslate2's converter of Marian would start
    # from zeros instead.
    "Marian": {
        "positions": "marian",
        "scale_embedding": True,
        "embedding_layer_norm": False,
        "activation": "silu",
        "output_bias": True,
        "source_vocab_size": SOURCE_SIZE,
        "source_prefix": (),
        "bos_token_id": 0,
        "mask_token_id": 3,
        "ar_position_offset": 0,
    },
    "BART": {"target_prefix": (EOS, 1), "ar_position_offset": 0, "activation": "gelu_tanh"},
    "mBART": {
        "pre_layer_norm": True,
        "source_prefix": (),
        "source_suffix": (EOS, 5),
        "target_prefix": (6,),
        "ar_position_offset": 0,
    },
    "M2M-100": {
        "pre_layer_norm": True,
        "embedding_layer_norm": False,
        "positions": "sinusoidal",
        "scale_embedding": True,
        "activation": "relu",
        "source_prefix": (5,),
        "target_prefix": (EOS, 6),
        "ar_position_offset": 0,
    },
    "all new kinds": {
        "positions": "rotary",
        "norm": "rms_norm",
        "feed_forward": "gated",
        "activation": "silu",
        "num_key_value_heads": 2,
        "pre_layer_norm": True,
        "embedding_layer_norm": False,
    },
}


def model_of(shape: dict[str, Any], seed: int = 3, eos_bias: float = 0.0) -> JanusTransformer:
    """A random model that is unsure enough to end its outputs at different places."""
    model = tiny_model(seed, torch.float32, **{**SHAPE, **shape})
    with torch.no_grad():
        model.embed_tokens.get_parameter("weight").mul_(0.25)
        model.embed_tokens.get_parameter("weight")[EOS] *= 1.6
        if model.output_bias is not None:
            model.output_bias[EOS] += eos_bias
    return model


def tokens_of(size: int) -> list[str]:
    return [f"token{index}" for index in range(size)]


def vocabularies_of(model: JanusTransformer) -> list[list[str]]:
    sizes = [model.config.vocab_size, model.config.source_vocab_size]
    return [tokens_of(size) for size in sizes if size]


def sources_of(model: JanusTransformer, count: int, longest: int = 20) -> list[list[int]]:
    rng = np.random.default_rng(0)
    size = model.config.source_vocab_size or SIZE
    texts = (rng.integers(7, size, rng.integers(1, longest)) for _ in range(count))
    return [framed(text, model.config.source_frame).tolist() for text in texts]


def translator(model: JanusTransformer, folder: Path, quantization: str | None = None) -> Any:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_ctranslate2(folder, model.config, state, vocabularies_of(model), quantization)
    compute_type = "int8" if quantization == "int8" else "float32"
    return ctranslate2.Translator(str(folder), compute_type=compute_type, intra_threads=1)


def theirs(model: JanusTransformer, engine: Any, sources: list[list[int]], beams: int) -> list[Any]:
    """CTranslate2's outputs. Nothing must be suppressed by hand."""
    config = model.config
    vocabularies = vocabularies_of(model)
    target, source = vocabularies[0], vocabularies[-1]
    given = given_with_texts(config, vocabularies)
    before, behind = (given.get(name, []) for name in ("source_prefix", "source_suffix"))
    prefix = given.get("target_prefix", [])
    start, stop = len(config.source_frame.prefix), -len(config.source_frame.suffix)
    texts = [[source[token] for token in tokens[start:stop]] for tokens in sources]
    results = engine.translate_batch(
        [[*before, *text, *behind] for text in texts],
        target_prefix=[prefix] * len(texts) if prefix else None,
        beam_size=beams,
        # Both count the prefix.
        min_decoding_length=1 + len(prefix),
        max_decoding_length=LONGEST + len(prefix),
    )
    outputs = [result.hypotheses[0][len(prefix) :] for result in results]
    return [[target.index(token) for token in output] for output in outputs]


def ours(model: JanusTransformer, sources: list[list[int]], beams: int) -> list[Any]:
    options = AutoregressiveOptions(max_length=LONGEST, num_beams=beams)
    return outputs(autoregressive(model, as_source(sources), options))


def outputs(found: Hypotheses) -> list[Any]:
    return [
        tokens[:length]
        for tokens, length in zip(
            found.tokens[:, 0].tolist(), found.lengths[:, 0].tolist(), strict=True
        )
    ]


def is_tie(model: JanusTransformer, source: list[int], mine: list[int], other: list[int]) -> bool:
    """Whether float32 cannot tell the first tokens apart in which two greedy outputs differ."""
    ends = [[*tokens, EOS] for tokens in (mine, other)]
    place = next(at for at, pair in enumerate(zip(*ends, strict=False)) if pair[0] != pair[1])
    log_probs = teacher_forced(model, source, mine[:place])[place]
    return abs(float(log_probs[ends[0][place]] - log_probs[ends[1][place]])) < 1e-4


def teacher_forced(model: JanusTransformer, source: list[int], tokens: list[int]) -> Any:
    """Log-probabilities in float64 after each prefix of `tokens`, `[tokens + 1, vocab]`."""
    exact = deepcopy(model).double()
    decoder = IncrementalDecoder(exact, read_sources(exact, as_source([source])))
    prefix = exact.config.target_frame.prefix
    block = torch.tensor([[*prefix, *tokens]])
    with torch.no_grad():
        read = decoder.read_block(block, torch.tensor([0]), block.shape[1])
    return read[0, len(prefix) - 1 :]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_greedy_outputs_are_equal(shape: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(shape)
    sources = sources_of(model, 500)
    expected = ours(model, sources, 1)
    found = theirs(model, translator(model, tmp_path), sources, 1)
    for source, mine, other in zip(sources, expected, found, strict=True):
        assert mine == other or is_tie(model, source, mine, other)
    # Outputs that all looked alike would prove little.
    assert len({tuple(tokens) for tokens in expected}) > 50


@pytest.mark.parametrize(
    ("name", "eos_bias"),
    [("post-LN", 7), ("sinusoidal", 2), ("Marian", 4), ("BART", 6), ("mBART", 3)],
)
def test_beams_differ_by_two_rules_alone(
    name: str, eos_bias: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTranslate2 shares the probability of forbidden tokens out among the others, and lets outputs
    at the cap go without eos. With the first rule in ours, too, the others are equal."""
    # With the bias many outputs end before the cap.
    model = model_of({**SHAPES[name], "output_bias": True}, eos_bias=eos_bias)
    sources = sources_of(model, 200)
    found = theirs(model, translator(model, tmp_path), sources, 4)
    plain = ours(model, sources, 4)
    monkeypatch.setattr(Rules, "apply", renormalised(Rules.apply))
    expected = ours(model, sources, 4)
    uncapped = [LONGEST not in (len(a), len(b)) for a, b in zip(expected, found, strict=True)]
    same = [a == b for a, b in zip(expected, found, strict=True)]
    same_as_plain = [a == b for a, b in zip(plain, found, strict=True)]
    print(f"{name}: {sum(same_as_plain)} of 200 equal; below the cap {sum(uncapped)}, ", end="")
    print(f"of these equal {sum(np.logical_and(same_as_plain, uncapped))}")
    assert sum(uncapped) > 50
    assert all(np.logical_or(same, np.logical_not(uncapped)))


def renormalised(apply: Any) -> Any:
    """`Rules.apply` whose result are log-probabilities again."""

    def applied(rules: Rules, log_probs: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(apply(rules, log_probs, written), dim=-1)

    return applied


@pytest.mark.parametrize(
    ("quantization", "tolerance"),
    # int8: less than 0.5 on CPUs with AVX-512, 0.81 on one with AVX2 alone.
    [(None, 1e-4), ("float32", 1e-4), ("float16", 0.02), ("bfloat16", 0.2), ("int8", 1.2)],
)
def test_scores_of_given_outputs(
    quantization: str | None, tolerance: float, tmp_path: Path
) -> None:
    """A second way to compare: CTranslate2's own scoring, of log-probabilities of about -4."""
    model = model_of(SHAPES["pre-LN"])
    sources = sources_of(model, 40)
    targets = [source[1:-1] for source in sources]
    engine = translator(model, tmp_path, quantization)
    tokens = tokens_of(SIZE)
    pieces = [[tokens[token] for token in target] for target in targets]
    scored = engine.score_batch(pieces, pieces)
    allowed = torch.ones(SIZE, dtype=torch.bool)
    allowed[[0, 1, 4]] = False
    differences = []
    for source, target, result in zip(sources, targets, scored, strict=True):
        log_probs = teacher_forced(model, source, target).masked_fill(~allowed, -torch.inf)
        expected = log_probs.log_softmax(-1).gather(1, torch.tensor([[*target, EOS]]).T)[:, 0]
        differences.append((torch.tensor(result.log_probs) - expected).abs())
    assert float(torch.cat(differences).mean()) < tolerance


# --- from an export ----------------------------------------------------------------------------


def saved(folder: Path, **shape: Any) -> JanusModel:
    """An export in `folder`, loaded again."""
    write_export(folder / "export", **shape)
    return JanusModel.from_pretrained(folder / "export", device="cpu")


TEXTS = ["the slot reads the beam", "<mask> and </s>", "<s> <pad> <unk>", "ü ☃", "a  token"]


def test_texts_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path)
    output = tmp_path / "ct2"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(tmp_path / "export"), "--output", str(output)]))
    assert capsys.readouterr().out.split() == [str(output)]
    engine = ctranslate2.Translator(str(output), compute_type="float32", intra_threads=1)
    tokenizer = load_tokenizer(output / "tokenizer.model")
    pieces = vocabulary(tokenizer)
    sources = [[pieces[token] for token in tokenizer.encode(text)] for text in TEXTS]
    # Text that spells a control piece is other pieces.
    control = {pieces[token] for token in tokenizer.special_ids}
    assert len(set(pieces)) == len(pieces) and all(control.isdisjoint(source) for source in sources)
    results = engine.translate_batch(sources, beam_size=1, max_decoding_length=12)
    found = [
        tokenizer.decode([pieces.index(piece) for piece in result.hypotheses[0]])
        for result in results
    ]
    expected = model.generate(TEXTS, mode="ar", max_length=12)
    assert found == [generation.text for generation in expected]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_from_hugging_face_to_ctranslate2(name: str, tmp_path: Path) -> None:
    """Whole folders of each kind, with their tokenizers: texts in, texts out."""
    HUGGING_FACE[name](tmp_path / "theirs")
    convert_huggingface(tmp_path / "theirs", tmp_path / "export")
    given = export_to_ctranslate2(tmp_path / "export", tmp_path / "ct2")
    model = JanusModel.from_pretrained(tmp_path / "export", device="cpu")
    prefix = given.pop("target_prefix", [])
    suffix = given.pop("source_suffix", [])
    assert not given and prefix == (["<s>"] if name == "BART" else [])
    # mBART's sources end with their language.
    assert suffix == (["</s>", "de_DE"] if name == "mBART" else [])
    source, target = model.source_tokenizer.vocabulary.tokens, model.tokenizer.vocabulary.tokens
    texts = [model.source_tokenizer.encode(text) for text in HUGGING_FACE_TEXTS]
    engine = ctranslate2.Translator(str(tmp_path / "ct2"), compute_type="float32")
    results = engine.translate_batch(
        [[source[token] for token in text] + suffix for text in texts],
        target_prefix=[prefix] * len(texts),
        beam_size=1,
        min_decoding_length=1 + len(prefix),
        max_decoding_length=12 + len(prefix),
    )
    expected = model.generate(HUGGING_FACE_TEXTS, max_length=12)
    for result, generation in zip(results, expected, strict=True):
        found = result.hypotheses[0][len(prefix) :]
        assert found == [target[token] for token in generation.tokens]
        words = [target[t] for t in generation.tokens if t not in model.tokenizer.special_ids]
        assert model.tokenizer.segmenter.join(words) == generation.text


def test_int8_is_a_quarter_of_the_size(tmp_path: Path) -> None:
    saved(tmp_path, hidden_size=64, ffn_hidden_size=256)
    sizes = {}
    for quantization in ("float32", "int8"):
        folder = tmp_path / quantization
        export_to_ctranslate2(tmp_path / "export", folder, quantization)
        sizes[quantization] = (folder / "model.bin").stat().st_size
    engine = ctranslate2.Translator(str(tmp_path / "int8"), compute_type="int8")
    assert engine.translate_batch([["▁the"]], max_decoding_length=5)[0].hypotheses[0]
    assert sizes["int8"] < 0.4 * sizes["float32"]
    # CTranslate2 quantises in place what is mapped from the export's file: that is still whole.
    load_export(tmp_path / "export")


@pytest.mark.parametrize(
    "key, shape",
    [
        ("ar_stream", {"ar_stream": "query"}),
        ("causal_self_attention", {"causal_self_attention": True}),
        ("embedding_projection", {"embedding_projection": True}),
    ],
)
def test_other_models_are_refused_by_key(key: str, shape: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, **shape)
    assert [name for name, _ in unsupported(model.config)] == [key]
    with pytest.raises(UserError, match=rf"export: model\.{key}: "):
        export_to_ctranslate2(tmp_path / "export", tmp_path / "ct2")
    assert not (tmp_path / "ct2").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        export_to_ctranslate2(tmp_path / "export", tmp_path / "export")


def test_a_weight_without_a_place_is_named(tmp_path: Path) -> None:
    model = model_of({})
    state = {**model.state_dict(), "encoder.new.weight": torch.zeros(2)}
    with pytest.raises(UserError, match=r"encoder\.new\.weight: "):
        write_ctranslate2(tmp_path, model.config, state, vocabularies_of(model))
    assert not list(tmp_path.iterdir())
