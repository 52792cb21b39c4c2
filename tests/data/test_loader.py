"""The loaders: what ranks and worker processes hand out is the one global sequence, shared."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.config.schema import DataConfig
from janus_pt.data.loader import TrainLoader, valid_batches
from janus_pt.utils.errors import UserError
from tests.support.corpora import write_corpus

SAMPLES = 60
Record = tuple[bytes, int]


def prepare(fields: dict[str, np.ndarray], rng: np.random.Generator) -> Record:
    return fields["text"].tobytes(), int(rng.integers(2**62))


def collate(examples: list[Record]) -> list[Record]:
    return examples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), [11, 0, 20, 7, 22])


def config(corpus: Path | str, **changes: Any) -> DataConfig:
    values = dict(
        train=[{"path": str(corpus)}], valid=str(corpus), global_batch_size=1, micro_batch_size=100
    )
    return DataConfig.model_validate(
        {**values, "window": 25, "shuffle_shards": 2, "num_workers": 0, **changes}
    )


def make(
    data: DataConfig, rank: int = 0, ranks: int = 1, step: int = 4, seed: int = 3
) -> TrainLoader[Any, Any]:
    arguments = dict(micro_batches_per_step=step, rank=rank, ranks=ranks)
    return TrainLoader(data, prepare, collate, seed=seed, max_length=32, **arguments)


def global_steps(
    data: DataConfig, ranks: int, steps: int, state: dict[str, Any] | None = None, step: int = 4
) -> tuple[list[list[list[Record]]], dict[str, Any]]:
    """The micro-batches of each step in global order, and the state behind, from all ranks' loaders."""
    loaders = [make(data, rank, ranks, step) for rank in range(ranks)]
    taken = []
    for loader in loaders:
        if state:
            loader.load_state_dict(json.loads(json.dumps(state)))
        with closing(iter(loader)) as batches:
            taken.append(list(islice(batches, steps)))
    assert all(len(own) == step // ranks for rank in taken for own in rank)
    assert all(loader.state_dict() == loaders[0].state_dict() for loader in loaders)
    merged = [
        list(chain.from_iterable(zip(*shares, strict=True))) for shares in zip(*taken, strict=True)
    ]
    return merged, loaders[0].state_dict()


@pytest.fixture(scope="module")
def unbroken(corpus: Path) -> list[list[Record]]:
    """The first micro-batches of the global sequence."""
    return list(chain.from_iterable(global_steps(config(corpus), 1, 15)[0]))


def tokens_of_all_samples(corpus: Path) -> list[bytes]:
    shards = sorted(str(path) for path in corpus.glob("*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    return sorted(np.load(io.BytesIO(sample["text.npy"])).tobytes() for sample in samples)


def test_an_epoch_is_every_sample_once(corpus: Path, unbroken: list[list[Record]]) -> None:
    records = list(chain.from_iterable(unbroken))
    read = sorted(tokens for tokens, _ in records[:SAMPLES])
    assert read == tokens_of_all_samples(corpus)
    assert sorted(tokens for tokens, _ in records[SAMPLES : 2 * SAMPLES]) == read
    assert (
        len({draw for _, draw in records[: 2 * SAMPLES]}) == 2 * SAMPLES
    )  # noise is new every epoch


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 4]),
    steps=st.integers(0, 6),
    then_ranks=st.sampled_from([1, 2, 4, 8]),
    then_step=st.sampled_from([8, 16]),
)
def test_any_ranks_read_one_sequence_and_any_others_go_on_with_it(
    corpus: Path,
    unbroken: list[list[Record]],
    ranks: int,
    steps: int,
    then_ranks: int,
    then_step: int,
) -> None:
    first, state = global_steps(config(corpus), ranks, steps)
    second, end = global_steps(config(corpus), then_ranks, 2, state, then_step)
    read = list(chain.from_iterable(first + second))
    assert read == unbroken[: len(read)]
    assert len(read) == 4 * steps + 2 * then_step
    assert end["samples"] == sum(map(len, read))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(
    corpus: Path, unbroken: list[list[Record]], workers: int
) -> None:
    first, state = global_steps(config(corpus, num_workers=workers), 1, 3)
    assert list(chain.from_iterable(first)) == unbroken[:12]
    _, expected = global_steps(config(corpus), 1, 3)
    assert state == expected  # what lies ready in the workers is not counted


def test_the_global_random_state_is_left_alone(corpus: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with closing(iter(make(config(corpus)))) as batches:
        next(batches)
    list(valid_batches(config(corpus), prepare, collate, max_length=32, rank=0, ranks=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_state_of_other_data_or_settings_is_refused(corpus: Path, tmp_path: Path) -> None:
    state = make(config(corpus)).state_dict()
    other = write_corpus(tmp_path, [11, 0, 20, 7, 22], seed=9)
    changes = [
        (make(config(other)), "the content of data.train"),
        (
            make(config(corpus, train=[{"path": str(corpus), "weight": 2.0}])),
            r"weights of data.train \(was \[1.0\]",
        ),
        (make(config(corpus, micro_batch_size=90)), r"data.micro_batch_size \(was 100, is 90\)"),
        (make(config(corpus, batch_unit="sequences")), "data.batch_unit"),
        (make(config(corpus, window=24)), "data.window"),
        (make(config(corpus, shuffle_shards=3)), "data.shuffle_shards"),
        (make(config(corpus), seed=4), "run.seed"),
    ]
    for loader, named in changes:
        with pytest.raises(UserError, match=named):
            loader.load_state_dict(state)
    assert len({loader.fingerprint for loader, _ in changes}) == len(changes)
    make(config(corpus, num_workers=1)).load_state_dict(state)


def test_corpora_that_do_not_belong_together_are_refused(corpus: Path, tmp_path: Path) -> None:
    pairs = write_corpus(tmp_path / "pairs", [3], ("source", "target"))
    foreign = write_corpus(tmp_path / "foreign", [3], tokenizer=b"another model")
    for other, problem in ((pairs, "of different kinds"), (foreign, "different tokenizers")):
        with pytest.raises(UserError, match=f"{corpus} and {other} .*{problem}"):
            make(config(corpus, train=[{"path": str(corpus)}, {"path": str(other)}]))


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_validation_is_every_sample_once_and_equally_long_on_every_rank(
    corpus: Path, ranks: int
) -> None:
    def validate(rank: int) -> list[list[Record] | None]:
        return list(
            valid_batches(config(corpus), prepare, collate, max_length=32, rank=rank, ranks=ranks)
        )

    shares = [validate(rank) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    read = [record for batch in chain.from_iterable(shares) if batch for record in batch]
    assert sorted(tokens for tokens, _ in read) == tokens_of_all_samples(corpus)
    assert shares[0] == validate(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_one_clear_message_whoever_reads_it(
    corpus: Path, tmp_path: Path, workers: int
) -> None:
    for path in corpus.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with (
        pytest.raises(UserError) as caught,
        closing(iter(make(config(tmp_path, num_workers=workers)))) as batches,
    ):
        list(islice(batches, 20))
    assert str(caught.value).startswith(
        f"{shard}: it has {shard.stat().st_size} bytes, the manifest says"
    )
    assert "Traceback" not in str(caught.value)


def start_and_wait(folder: str) -> None:
    """Run by the test below: read one step, say so, and wait to be killed."""
    with closing(iter(make(config(folder, num_workers=2)))) as batches:
        next(batches)
        print("reading", flush=True)
        time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_training_process(corpus: Path, end: signal.Signals) -> None:
    code = f"from tests.data import test_loader; test_loader.start_and_wait({str(corpus)!r})"
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    heard = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a job in a shell's background ignores interrupts
    call = [sys.executable, "-c", code]
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, text=True, env=place, preexec_fn=heard
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 3  # the server they are forked from, and two of them
        process.send_signal(end)
        process.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
