"""Pretraining from a corpus that several tasks of the pipeline wrote, and whose partial manifests were joined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from janus_pt.data.manifest import read_manifest
from tests.data_prep.pipeline.test_shards import config, write_documents
from tests.support.corpus_text import tokenizer
from tests.support.planted import run_inline
from tests.support.runs import kill_at_step, launch, losses, write_run_config


@pytest.mark.slow
def test_pretraining_killed_and_resumed_on_a_joined_manifest(tmp_path: Path) -> None:
    """Two ranks: every number of the log and every weight are the unbroken run's."""
    write_documents(tmp_path)
    run_inline(config(tmp_path, tasks=3, shards={"max_tokens": 16, "samples_per_shard": 500}))
    manifest = read_manifest(tmp_path / "corpus")
    assert {shard.file[:11] for shard in manifest.shards} == {f"shard-0000{task}" for task in range(3)}  # fmt: skip
    training = write_run_config(
        tmp_path,
        model__vocab_size=tokenizer().vocab_size,
        data__valid=None,
        run__eval_every=0,
        checkpoint__every=4,
        run__max_steps=12,
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        arguments = ["--config", str(training), "--set", f"run.output_dir={folder}"]
        if folder == broken:
            kill_at_step(6, broken / "metrics.jsonl", *arguments, ranks=2)
            assert not (broken / "export").exists()
        done = launch("pretrain.py", *arguments, "--resume", "auto", ranks=2)
        assert done.returncode == 0, done.stderr
    ours, theirs = (losses(folder / "metrics.jsonl") for folder in (broken, whole))
    assert ours == theirs and (12, "loss/total") in theirs
    mine, yours = (load_file(folder / "export" / "model.safetensors") for folder in (broken, whole))
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in yours.items())
