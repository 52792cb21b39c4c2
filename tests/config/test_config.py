"""Reading a configuration: good ones round-trip, bad ones are answered by one message that names key and line."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.checks import read_config
from janus_pt.config.parallel_schema import padded_vocab_size
from janus_pt.config.reader import MAX_BYTES, to_json
from janus_pt.config.schema import Config
from janus_pt.parallel.deepspeed_config import (
    DECIDED_BY,
    derived_deepspeed_config,
    zero_optimization,
)
from janus_pt.utils.errors import UserError

GOOD = """\
{
  "model": {"vocab_size": 8000, "hidden_size": 64,
            "num_attention_heads": 4},
  "data": {
    "train": [
      {"path": "corpus/a"},
      {"path": "corpus/b", "weight": 2.0}
    ],
    "global_batch_size": 4096,
    "micro_batch_size": 1024
  },
  "optimizer": {"lr": 0.001,
                "betas": [0.9, 0.98]},
  "schedule": {
    "warmup_steps": 10
  },
  "objective": {},
  "run": {
    "output_dir": "runs/x",
    "max_steps": 100
  }
}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.json"
    path.write_text(text)
    return path


def message(
    tmp_path: Path, text: str, overrides: tuple[str, ...] = (), world_size: int | None = None
) -> str:
    with pytest.raises(UserError) as caught:
        read_config(write(tmp_path, text), overrides, world_size)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_good_file(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD), world_size=4)
    assert config.model.hidden_size == 64
    assert [corpus.weight for corpus in config.data.train] == [1.0, 2.0]
    assert config.data.micro_batches_per_step == 4
    assert config.objective.recipe == "pretraining" and config.objective.masking.kind == "infill"


# What is replaced in GOOD, by what, and the message: a line number and the words that matter.
BAD = {
    "misspelt key": (
        '"hidden_size"',
        '"hiden_size"',
        'run.json:2: model.hiden_size: unknown key; did you mean "hidden_size"?',
    ),
    "misspelt section": (
        '"schedule"',
        '"shedule"',
        'run.json:14: shedule: unknown key; did you mean "schedule"?',
    ),
    "key of another section": (
        '"warmup_steps"',
        '"max_steps"',
        "run.json:15: schedule.max_steps: unknown key here; it belongs in run.max_steps",
    ),
    "key of a nested section": (
        '"warmup_steps": 10',
        '"mean_span_length": 3.0',
        "run.json:15: schedule.mean_span_length: unknown key here; it belongs in objective.masking.mean_span_length",
    ),
    "foreign key": (
        '"warmup_steps": 10',
        '"colour": 3',
        "run.json:15: schedule.colour: unknown key; remove it or use one of: kind, warmup_steps, final_lr, power",
    ),
    "string for a number": (
        '"max_steps": 100',
        '"max_steps": "100"',
        'run.json:20: run.max_steps: expected a whole number, got "100": write it without quotes',
    ),
    "exponent for a whole number": (
        '"max_steps": 100',
        '"max_steps": 1e4',
        "run.json:20: run.max_steps: expected a whole number, got 10000.0: write 10000",
    ),
    "number for a string": (
        '"runs/x"',
        "7",
        "run.json:19: run.output_dir: expected a string, got 7",
    ),
    "string for true or false": (
        '"warmup_steps": 10\n  }',
        '"warmup_steps": 10\n  },\n "tracking": {"enabled": "yes"}',
        'run.json:17: tracking.enabled: expected true or false, got "yes"',
    ),
    "list for an object": (
        '"objective": {}',
        '"objective": []',
        "run.json:17: objective: expected an object, got []",
    ),
    "object for a list": (
        "[0.9, 0.98]",
        "{}",
        "run.json:13: optimizer.betas: expected a list, got {}",
    ),
    "list too short": (
        "[0.9, 0.98]",
        "[0.9]",
        "run.json:13: optimizer.betas.1: the list needs an item 1, but has 1",
    ),
    "list too long": (
        "[0.9, 0.98]",
        "[0.9, 0.98, 0.999]",
        "run.json:13: optimizer.betas: needs at most 2 items, but has 3",
    ),
    "out of range": (
        "2.0",
        "0.0",
        "run.json:7: data.train.1.weight: must be greater than 0, but is 0.0",
    ),
    "infinity by overflow": (
        "0.001",
        "1e999",
        "run.json:12: optimizer.lr: expected a finite number, got Infinity",
    ),
    "no such choice": (
        '"objective": {}',
        '"objective": {"recipe": "translate"}',
        'run.json:17: objective.recipe: must be "pretraining" or "translation", but is "translate"',
    ),
    "recipe that is no name": (
        '"objective": {}',
        '"objective": {"recipe": ["translation"]}',
        'run.json:17: objective.recipe: must be "pretraining" or "translation", but is ["translation"]',
    ),
    "required key missing": (
        '"vocab_size": 8000, ',
        "",
        "run.json:2: model.vocab_size: is required: add it",
    ),
    "misspelt required key": (
        '"path": "corpus/b"',
        '"paht": "corpus/b"',
        'run.json:7: data.train.1.paht: unknown key; did you mean "path"?',
    ),
    "key given twice": (
        '"max_steps": 100',
        '"max_steps": 100,\n "max_steps": 200',
        "run.json:21: run.max_steps: given twice, first on line 20: remove one of them",
    ),
    "broken JSON": ('"optimizer"', "optimizer", "run.json:12: column 3: broken JSON"),
    "not a JSON number": (
        "0.001",
        "NaN",
        "run.json: broken JSON (NaN is not a JSON number; write a finite one)",
    ),
    "half a character": ("runs/x", "\\ud800", "run.json: a string holds half of a surrogate pair"),
    "heads do not divide": (
        '"hidden_size": 64',
        '"hidden_size": 66',
        "run.json:2: model.hidden_size: must be a multiple of model.num_attention_heads (4), but is 66: use 64 or 68",
    ),
    "special ids equal": (
        '"vocab_size": 8000',
        '"vocab_size": 8000, "mask_token_id": 2',
        "run.json:2: model.mask_token_id: 2 is eos_token_id already",
    ),
    "special id outside": (
        "8000",
        "4",
        "run.json:2: model.mask_token_id: must be below the size of every vocabulary (4), but is 4",
    ),
    "batch not divisible": (
        "4096",
        "4000",
        "run.json:9: data.global_batch_size: must be a multiple of data.micro_batch_size (1024), but is 4000: use 3072",
    ),
    "warm-up longer than the run": (
        '"warmup_steps": 10',
        '"warmup_steps": 101',
        "run.json:15: schedule.warmup_steps: 101 warm-up steps do not fit in run.max_steps, which is 100",
    ),
    "final rate above the rate": (
        '"warmup_steps": 10',
        '"final_lr": 0.1',
        "run.json:15: schedule.final_lr: must be at most optimizer.lr (0.001)",
    ),
    "no weight at all": (
        '"objective": {}',
        '"objective": {"ce_ar": 0, "ce_nar": 0, "ce_aux": 0, "kl_ar_aux": 0, "kl_aux_nar": 0}',
        "run.json:17: objective: all weights are 0, so nothing would be learnt",
    ),
    "validation without a corpus": (
        '"max_steps": 100',
        '"max_steps": 100, "eval_every": 5',
        "run.json:20: run.eval_every: needs a validation corpus: set data.valid",
    ),
    "derived key in deepspeed": (
        '"objective": {}',
        '"deepspeed": {"zero_optimization":\n {"stage": 2}}',
        "run.json:18: deepspeed.zero_optimization.stage: DeepSpeed's value is derived from parallel.zero_stage",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_names_line_key_and_remedy(tmp_path: Path, case: str) -> None:
    old, new, expected = BAD[case]
    assert GOOD.count(old) == 1
    assert message(tmp_path, GOOD.replace(old, new)).startswith(expected)


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("8000", '"many"')
        .replace("4096", "4000")
        .replace('"warmup_steps": 10', '"warmup_steps": 200')
    )
    told = message(tmp_path, text, ("run.max_steps=100", "modle.x=1")).splitlines()
    assert told[0] == "4 problems in the configuration:"
    assert [line.split(": ")[:2] for line in map(str.strip, told[1:])] == [
        ["run.json:2", "model.vocab_size"],
        ["run.json:9", "data.global_batch_size"],
        ["run.json:15", "schedule.warmup_steps"],
        ["--set modle.x=1", "modle"],
    ]


def test_a_missing_export_hides_no_other_problem(tmp_path: Path) -> None:
    """What the export would have said of the model is not asked for; adapters are no model to start from."""
    text = GOOD.replace('"max_steps": 100', '"max_steps": 0, "init_from": "nowhere"')
    sections = json.loads(text)
    del sections["model"]
    told = message(tmp_path, json.dumps(sections, indent=1)).splitlines()
    assert told[0] == "2 problems in the configuration:"
    assert any(
        "run.init_from: nowhere: no exported model here, config.json is missing" in line
        for line in told
    )
    assert any("run.max_steps: must be greater than 0" in line for line in told)
    (tmp_path / "adapter_config.json").touch()
    told = message(tmp_path, GOOD, (f"run.init_from={tmp_path}",))
    assert (
        told.startswith("--set run.init_from")
        and "give the merged model, the folder export/ beside them" in told
    )


def test_ranks_that_cannot_share_a_step(tmp_path: Path) -> None:
    told = message(tmp_path, GOOD, world_size=3)
    expected = "run.json:9: data.global_batch_size: a step of 4 micro-batches of 1024 cannot be shared by 3"
    assert told == f"{expected} data-parallel ranks: use a multiple of 3072"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{}",
        b"[1]",
        b"7",
        b"{" * 5000,
        b"[" * 100_000,
        b'{"a":' * 60 + b"1" + b"}" * 60,
    ],
)
def test_not_a_configuration(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json"):
        read_config(path)


def test_absurd_size_and_missing_file(tmp_path: Path) -> None:
    assert "larger than 1 MiB" in message(tmp_path, GOOD + " " * MAX_BYTES)
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        read_config(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    overrides = (
        "run.max_steps=7",
        "data.train.1.path=s3://b/c=d",
        "run.output_dir=a b",
        "tracking.enabled=false",
    )
    config = read_config(path, (*overrides, "optimizer.betas=[0.5, 0.6]", "run.max_steps=20"))
    assert config.run.max_steps == 20 and config.run.output_dir == "a b"
    assert config.data.train[1].path == "s3://b/c=d" and config.data.train[1].weight == 2.0
    assert config.optimizer.betas == (0.5, 0.6) and config.tracking.enabled is False


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "run.max_step=7",
            '--set run.max_step=7: run.max_step: unknown key; did you mean "max_steps"?',
        ),
        (
            "run.max_steps=x",
            '--set run.max_steps=x: run.max_steps: expected a whole number, got "x"',
        ),
        (
            "run.output_dir=7",
            "--set run.output_dir=7: run.output_dir: expected a string, got 7: write it in quotes",
        ),
        ("max_steps", "--set max_steps: max_steps: write it as dotted.key=value"),
        ("a..b=1", "--set a..b=1: a..b=1: write it as dotted.key=value"),
        (
            "data.train.2.path=x",
            "--set data.train.2.path=x: data.train.2: cannot be set: data.train is a list of 2 items",
        ),
        (
            "run.max_steps.x=1",
            "--set run.max_steps.x=1: run.max_steps.x: cannot be set: run.max_steps is no object",
        ),
        (
            'data.train=[{"paht": "x"}]',
            '--set data.train=[{"paht": "x"}]: data.train.0.paht: unknown key; did you mean "path"?',
        ),
        (
            "model.hidden_size=66",
            "--set model.hidden_size=66: model.hidden_size: must be a multiple",
        ),
    ],
)
def test_bad_override(tmp_path: Path, override: str, expected: str) -> None:
    assert message(tmp_path, GOOD, (override,)).startswith(expected)


def test_launcher_exits_2_without_a_trace(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("8000", '"8000"'))
    code = "from janus_pt.checks import read_config; from janus_pt.utils.errors import entry_point;"
    code += f"entry_point(lambda: print(read_config({str(path)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == f'error: {path}:2: model.vocab_size: expected a whole number, got "8000": write it without quotes\n'
    )


@settings(max_examples=50, deadline=None)
@given(
    recipe=st.sampled_from(["pretraining", "translation"]),
    kind=st.sampled_from(["infill", "span", "uniform"]),
    lr=st.floats(1e-9, 1.0),
    ratio=st.floats(0.0, 1.0),
    deepspeed=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers(-9, 9) | st.text(), max_size=3
    ),
)
def test_resolved_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    recipe: str,
    kind: str,
    lr: float,
    ratio: float,
    deepspeed: dict[str, Any],
) -> None:
    data = json.loads(GOOD)
    data["objective"] = {"recipe": recipe, "masking": {"kind": kind, "ratio": ratio}}
    data["optimizer"]["lr"] = lr
    data["deepspeed"] = {key: value for key, value in deepspeed.items() if key not in DECIDED_BY}
    path = tmp_path_factory.mktemp("config") / "run.json"
    path.write_text(json.dumps(data))
    config = read_config(path)
    path.write_text(to_json(config))
    assert read_config(path) == config
    assert config.optimizer.lr == lr and config.objective.masking.ratio == ratio


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "lr", "kind", "recipe", "masking", "train", "bf16"])
            | st.text(max_size=3),
            inner,
        )
    ),
    max_leaves=10,
)
SECTIONS = st.dictionaries(st.sampled_from(list(Config.model_fields)), JSON)


@settings(max_examples=300, deadline=None)
@given(
    content=(JSON | SECTIONS).map(json.dumps) | st.text(),
    override=st.text(max_size=20) | st.just("data.train.0=[3]"),
)
def test_any_file_gives_a_configuration_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, content: str, override: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "run.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"run\.json|--set"):
        read_config(path, [override])


def example(*overrides: str) -> Config:
    data = json.loads(GOOD)
    for override in overrides:
        section, key, value = override.replace("=", ".").split(".", 2)
        data.setdefault(section, {})[key] = json.loads(value)
    return Config.model_validate(data)


def derived(config: Config, data_parallel_size: int) -> dict[str, Any]:
    return derived_deepspeed_config(
        config.data,
        config.optimizer,
        config.parallel,
        config.precision,
        config.deepspeed,
        data_parallel_size,
    )


def test_derived_configuration_is_what_deepspeed_reads() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = derived(example('precision.dtype="bfloat16"', "optimizer.clip_norm=0.5"), 1)
    theirs = DeepSpeedConfig(settings)
    assert theirs.gradient_accumulation_steps == 4 and theirs.train_micro_batch_size_per_gpu == 1
    assert theirs.gradient_clipping == 0.5
    assert theirs.bfloat16_config.enabled and not theirs.float16_config.enabled
    assert theirs.grad_accum_dtype == "fp32" and theirs.zero_optimization_stage == 1
    plain = DeepSpeedConfig(derived(example(), 1))
    assert not plain.bfloat16_config.enabled and plain.zero_optimization_stage == 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_batch_triple_is_consistent(ranks: int) -> None:
    settings = derived(example(), ranks)
    product = (
        settings["train_micro_batch_size_per_gpu"] * settings["gradient_accumulation_steps"] * ranks
    )
    assert settings["train_batch_size"] == product == 4


def test_the_users_block_is_added_deep() -> None:
    block = {"zero_optimization": {"overlap_comm": True}, "communication_data_type": "fp32"}
    config = example("run.log_every=10").model_copy(update={"deepspeed": block})
    settings = derived(config, 2)
    assert (
        settings["zero_optimization"]["stage"] == 1
        and settings["zero_optimization"]["overlap_comm"] is True
    )
    assert settings["communication_data_type"] == "fp32"
    memory_relevant = zero_optimization(config.parallel, config.deepspeed)
    assert memory_relevant == settings["zero_optimization"]


@pytest.mark.parametrize("key", DECIDED_BY)
def test_every_derived_key_is_refused_and_names_a_key_of_ours(tmp_path: Path, key: str) -> None:
    told = message(tmp_path, GOOD, (f"deepspeed.{key}=true",))
    assert told.startswith(
        f"--set deepspeed.{key}=true: deepspeed.{key}: DeepSpeed's value is derived from "
    )
    for ours in DECIDED_BY[key].split(" and "):
        assert operator.attrgetter(ours)(example()) is not None


# Settings, the number of processes, and the message about a layout that cannot be.
BAD_LAYOUTS = {
    "heads": (["tensor_parallel_size=3"], 3, "3 does not divide model.num_attention_heads (4)"),
    "feed-forward network": (
        ["tensor_parallel_size=4"],
        4,
        "4 does not divide model.ffn_hidden_size (2050): use a divisor of it",
    ),
    "world size": (
        ["tensor_parallel_size=2", "pipeline_parallel_size=2"],
        6,
        "2 tensor-parallel times 2 pipeline-parallel ranks does not fit 6 processes: start a multiple of 4",
    ),
    "more stages than layers": (
        ["pipeline_parallel_size=13"],
        13,
        "13 stages cannot share 12 layers",
    ),
    "pipeline without ZeRO": (
        ["pipeline_parallel_size=2", "zero_stage=0"],
        2,
        "must be 1 with pipeline_parallel_size above 1, but is 0: DeepSpeed clips by a wrong gradient norm there",
    ),
    "pipeline with a step that decodes": (
        ["pipeline_parallel_size=2"],
        2,
        'objective "cmlmc" decodes before each step, which stages of a pipeline cannot: set it to 1',
    ),
    "pipeline with ZeRO-2": (
        ["pipeline_parallel_size=2", "zero_stage=2"],
        2,
        "DeepSpeed has no pipelines with it",
    ),
    "pipeline with ZeRO-3": (
        ["pipeline_parallel_size=2", "zero_stage=3"],
        2,
        "DeepSpeed has no pipelines with it",
    ),
    "pipeline with offload": (
        ["pipeline_parallel_size=2", "offload_optimizer=true"],
        2,
        "parallel.offload_optimizer: pipelines keep the optimizer state on the device",
    ),
    "wrong norm": (
        ["tensor_parallel_size=2", "zero_stage=0"],
        2,
        "DeepSpeed reports a wrong gradient norm at stage 0: use 1",
    ),
    "offload without ZeRO": (
        ["zero_stage=0", "offload_optimizer=true"],
        1,
        "needs zero_stage 1 or higher",
    ),
    "parameter offload": (
        ["zero_stage=2", "offload_parameters=true"],
        1,
        "needs zero_stage 3, but that is 2",
    ),
    "unshared batch": (
        ["tensor_parallel_size=2"],
        6,
        "cannot be shared by 3 data-parallel ranks: use a multiple of",
    ),
    "rows of one rank": (
        ["sequence_parallel=true"],
        2,
        "parallel.sequence_parallel: ranks share rows",
    ),
    "rows that ranks cannot share": (
        ["sequence_parallel=true", "tensor_parallel_size=64"],
        64,
        "in multiples of 32, which tensor_parallel_size (64) must divide",
    ),
    "reduced below the precision": (
        ["gradient_reduce_dtype=bfloat16"],
        2,
        "parallel.gradient_reduce_dtype: bfloat16 needs precision.dtype bfloat16",
    ),
    "unknown part to recompute": (
        ["activation_checkpointing=everything"],
        1,
        'parallel.activation_checkpointing: must be "none", "attention", "feed_forward" or "all"',
    ),
    "unknown stage": (["zero_stage=4"], 1, "parallel.zero_stage: must be 0, 1, 2 or 3, but is 4"),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_layouts_that_cannot_be(tmp_path: Path, name: str) -> None:
    layout, world_size, expected = BAD_LAYOUTS[name]
    changes = [f"parallel.{setting}" for setting in layout]
    if "ffn" in expected:
        changes.append("model.ffn_hidden_size=2050")
    if "norm at stage 0" in expected:
        changes.append("precision.dtype=bfloat16")
    if "cmlmc" in expected:
        changes.append("objective.name=cmlmc")
    assert expected in message(tmp_path, GOOD, tuple(changes), world_size)


def test_a_vocabulary_too_small_for_its_ranks(tmp_path: Path) -> None:
    small = ("model.vocab_size=9", "model.num_attention_heads=4", "parallel.tensor_parallel_size=4")
    assert "a vocabulary of 9 leaves some of 4 ranks without a token" in message(
        tmp_path, GOOD, small, 4
    )


@given(vocab_size=st.integers(1, 200_000), ranks=st.integers(1, 16))
def test_the_padded_vocabulary_is_the_least_that_ranks_share_evenly(
    vocab_size: int, ranks: int
) -> None:
    padded = padded_vocab_size(vocab_size, ranks)
    assert padded >= vocab_size and padded % ranks == 0 and (padded // ranks) % 8 == 0
    assert padded - 8 * ranks < vocab_size
