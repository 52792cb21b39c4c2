"""Small training runs for tests: a corpus, a configuration, and the launchers in real processes."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run_program
from tests.support.corpora import write_corpus
from tests.support.models import tokenizer_bytes
from tests.support.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 300
TIMEOUT_S = 280


def write_run_config(folder: Path, **changes: Any) -> Path:
    """A configuration that trains in seconds on random tokens; `section__key` changes a value."""
    if not (folder / "corpus").exists():
        for name, size in (("corpus", 80), ("valid", 12)):
            write_corpus(
                folder / name,
                [size],
                max_tokens=14,
                vocab_size=VOCAB,
                tokenizer=tokenizer_bytes(VOCAB),
            )
    config: dict[str, Any] = {
        "model": {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 2,
        },
        "data": {
            "train": [{"path": str(folder / "corpus")}],
            "valid": str(folder / "valid"),
            "window": 40,
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 5},
        "checkpoint": {"every": 5},
        "tracking": {"enabled": False},
        "run": {
            "output_dir": str(folder / "run"),
            "max_steps": 20,
            "log_every": 1,
            "eval_every": 10,
        },
    }
    config["model"].update(encoder_layers=1, decoder_layers=1, max_positions=24, length_classes=16)
    config["data"].update(global_batch_size=256, micro_batch_size=64, num_workers=1)
    for name, value in changes.items():
        section, key = name.split("__")
        config.setdefault(section, {})[key] = value
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=1))
    return path


def command(script: str, *arguments: str, ranks: int = 1) -> list[str]:
    """A launcher's command line, under the deepspeed launcher for several ranks."""
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), f"--num_accelerators={ranks}"]
    start = [sys.executable] if ranks == 1 else [*deepspeed, f"--master_port={free_port()}"]
    return [*start, str(ROOT / "launchers" / script), *arguments]


def environment() -> dict[str, str]:
    """No launcher's variables but ours; the virtual environment's programs and this tree's packages first."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {
        **kept,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": path,
        "PYTHONPATH": str(ROOT),
    }


def launch(
    script: str, *arguments: str, ranks: int = 1, timeout: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run a launcher to its end.

    Several ranks are started by us: DeepSpeed's launcher, in `command`, imports DeepSpeed twice more.
    """
    words = ["python", str(ROOT / "launchers" / script), *arguments]
    return run_program(words, ROOT, environment(), timeout, ranks=ranks)


def kill_at_step(step: int, metrics: Path, *arguments: str, ranks: int = 1) -> None:
    """Start a training and `kill -9` all its processes as soon as `metrics.jsonl` has this step."""
    call = command("pretrain.py", *arguments, ranks=ranks)
    with subprocess.Popen(call, env=environment(), cwd=ROOT, start_new_session=True) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and any(record["step"] >= step for record in read_records(metrics)):
                break
            time.sleep(0.02)
        assert process.poll() is None, "the training ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)


def read_records(metrics: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics file."""
    return [
        json.loads(line)
        for line in metrics.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def losses(metrics: Path) -> dict[tuple[float, str], float]:
    """Every number of a run that does not depend on the clock, by step and name."""
    clock = ("step", "tokens_per_s", "time/", "slowest_rank", "memory/")
    return {
        (r["step"], k): v
        for r in read_records(metrics)
        for k, v in r.items()
        if not k.startswith(clock)
    }


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    """Run a script of the project in this process, as from the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0
