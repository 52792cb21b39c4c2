"""Corpora that are damaged, hold bad samples, or are replaced: never used silently, left out only by choice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.data import workers
from janus_pt.data.corpus import open_corpus
from janus_pt.data.files import Damaged
from janus_pt.data.loader import valid_batches
from janus_pt.data.manifest import read_manifest
from janus_pt.utils.errors import UserError
from tests.data.test_loader import Record, collate, config, make, prepare
from tests.support.corpora import write_corpus, write_shard

SIZES = [11, 20, 7, 22]
BAD = 1
"""The shard that is damaged."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("whole"), SIZES)


@pytest.fixture
def corpus(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "corpus"))


def shard(corpus: Path) -> Path:
    return corpus / f"shard-{BAD:06d}.tar"


def place_of(corpus: Path, sample: int) -> int:
    """Byte at which a sample's tokens begin."""
    return int(np.load(corpus / f"shard-{BAD:06d}.idx.npy")[sample, 0])


def flip_a_bit(corpus: Path) -> None:
    content = bytearray(shard(corpus).read_bytes())
    content[place_of(corpus, 3)] ^= 4
    shard(corpus).write_bytes(content)


def remove(corpus: Path) -> None:
    shard(corpus).unlink()


def cut_short(corpus: Path) -> None:
    os.truncate(shard(corpus), shard(corpus).stat().st_size // 2)


def replace_by_zeros(corpus: Path) -> None:
    shard(corpus).write_bytes(bytes(shard(corpus).stat().st_size))


DAMAGES: dict[Callable[[Path], None], tuple[str, int]] = {
    flip_a_bit: (r"sample 3, field text: its content is not what the corpus was built with", 1),
    remove: ("no such file", SIZES[BAD]),
    cut_short: (r"it has \d+ bytes, the manifest says \d+", SIZES[BAD]),
    replace_by_zeros: (r"sample \d+, field text: its content is not what", SIZES[BAD]),
}
"""What is reported of each damage, and how many samples it costs."""


def samples(
    corpus: Path, steps: int = 15, ranks: int = 1, **changes: Any
) -> list[list[list[Record]]]:
    """By rank, the records of each of its micro-batches."""
    loaders = [make(config(corpus, **changes), rank, ranks) for rank in range(ranks)]
    taken = []
    for loader in loaders:
        with closing(iter(loader)) as batches:
            taken.append(list(chain.from_iterable(islice(batches, steps))))
    return taken


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_stops_the_run_in_one_message(
    corpus: Path, damage: Callable[[Path], None], num_workers: int
) -> None:
    damage(corpus)
    with pytest.raises(
        UserError, match=f"^{shard(corpus)}: {DAMAGES[damage][0]}.*; copy or build"
    ) as caught:
        samples(corpus, num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_only_damaged_samples_are_skipped_and_nothing_else_moves(
    corpus: Path, whole: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two epochs; batches of many samples, so that none is damaged as a whole."""
    workers._warn_once.cache_clear()
    epochs = dict(steps=6, micro_batch_size=300, global_batch_size=300, window=60)
    [unbroken] = samples(whole, **epochs)
    damage(corpus)
    opened = open_corpus(str(corpus))
    lost = set()
    for sample in range(SIZES[BAD]):
        try:
            opened.read(BAD, sample)
        except Damaged:
            lost.add(open_corpus(str(whole)).read(BAD, sample)["text"].tobytes())
    message, count = DAMAGES[damage]
    assert len(lost) == count
    [read] = samples(corpus, on_error="skip", **epochs)
    assert read == [[record for record in batch if record[0] not in lost] for batch in unbroken]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (
        1 if "sample" not in message else count
    )  # a lost shard is reported once
    assert all(line.startswith(f"warning: skipped: {shard(corpus)}: ") for line in warnings)


def test_the_number_of_skipped_samples_is_known(corpus: Path) -> None:
    """The loader counts what it handed out, over all ranks; a step counts what it was trained on."""
    cut_short(corpus)
    loader = make(
        config(corpus, on_error="skip", micro_batch_size=300, global_batch_size=300, window=60)
    )
    seen = 0
    with closing(iter(loader)) as batches:
        while loader.state_dict()["epoch"] < 1:
            seen += sum(map(len, chain(next(batches))))
    whole_epochs, over = divmod(loader.samples, sum(SIZES))
    assert whole_epochs == 1 and loader.samples - seen >= SIZES[BAD] and over < sum(SIZES)


@pytest.fixture(scope="module")
def flipped(
    whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[Record]]]:
    """A corpus with bit flips in a few samples, and the micro-batches that are read of it without a break."""
    copy = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flipped") / "corpus"))
    content = bytearray(shard(copy).read_bytes())
    for sample in (0, 5, 6, 19):
        content[place_of(copy, sample)] ^= 1
    shard(copy).write_bytes(content)
    return copy, samples(copy, steps=30, **LEFT_OUT)[0]


LEFT_OUT = dict(on_error="skip", micro_batch_size=120, global_batch_size=120)


@settings(max_examples=15, deadline=None)
@given(
    steps=st.integers(0, 6), ranks=st.sampled_from([1, 2, 4]), then_ranks=st.sampled_from([1, 2, 4])
)
def test_any_ranks_and_any_resume_skip_the_same_samples(
    flipped: tuple[Path, list[list[Record]]], steps: int, ranks: int, then_ranks: int
) -> None:
    corpus, unbroken = flipped
    read: list[list[Record]] = []
    state: dict[str, Any] = make(config(corpus, **LEFT_OUT)).state_dict()
    for count, number in ((steps, ranks), (2, then_ranks)):
        loaders = [make(config(corpus, **LEFT_OUT), rank, number) for rank in range(number)]
        taken = []
        for loader in loaders:
            loader.load_state_dict(state)
            with closing(iter(loader)) as batches:
                taken.append(list(islice(batches, count)))
        for shares in zip(*taken, strict=True):
            read += chain.from_iterable(zip(*shares, strict=True))
        state = loaders[0].state_dict()
    assert read == unbroken[: len(read)] and len(read) == 4 * (steps + 2)


def test_a_corpus_that_is_all_damage_is_not_skipped(corpus: Path) -> None:
    for path in corpus.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"data.on_error: no sample of a micro-batch is whole"):
        samples(corpus, on_error="skip")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_validation_treats_damage_as_training_does(corpus: Path, on_error: str) -> None:
    flip_a_bit(corpus)
    data = config(corpus, on_error=on_error, micro_batch_size=300, global_batch_size=300)
    batches = valid_batches(data, prepare, collate, max_length=32, rank=0, ranks=1)
    if on_error == "stop":
        with pytest.raises(UserError, match="sample 3"):
            list(batches)
    else:
        assert sum(len(batch) for batch in batches if batch) == sum(SIZES) - 1


@pytest.mark.parametrize(
    "damage", [os.unlink, lambda path: os.truncate(path, 200), lambda path: flip_last(path)]
)
def test_a_damaged_index_stops_the_run_whatever_the_choice(
    corpus: Path, damage: Callable[[Path], None]
) -> None:
    """Every rank plans from it: if one of them left something out, the ranks would read different orders."""
    damage(shard(corpus).with_suffix(".idx.npy"))
    with pytest.raises(UserError, match=f"{shard(corpus)}: .*index"):
        samples(corpus, on_error="skip")
    with pytest.raises(UserError) as caught:
        open_corpus(str(corpus)).read(
            BAD, 0
        )  # as a worker process does, which loads the index anew
    assert not isinstance(caught.value, Damaged)


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_disk_that_fails_stops_the_run_whatever_the_choice(corpus: Path) -> None:
    remove(corpus)
    shard(corpus).symlink_to(shard(corpus).name)  # opening it gives ELOOP, as a sick disk gives EIO
    with pytest.raises(
        UserError, match=f"{shard(corpus)}: cannot be read: .*; check the disk"
    ) as caught:
        samples(corpus, on_error="skip")
    assert not isinstance(caught.value, Damaged)


def rewritten(corpus: Path, sample: list[int]) -> Path:
    """The corpus with one more shard, whose only sample is given."""
    tokens = {"text": np.array(sample, dtype="uint16")}
    more = write_shard(corpus / "shard-000009.tar", [tokens], ("text",), 900)
    manifest = read_manifest(corpus)
    total = {"text": manifest.tokens["text"] + len(sample)}
    longest = max(manifest.max_tokens, len(sample))
    changes = dict(
        shards=(*manifest.shards, more),
        samples=manifest.samples + 1,
        tokens=total,
        max_tokens=longest,
    )
    manifest.model_copy(update=changes).write(corpus)
    return corpus


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ([], "shard-000009.tar: sample 0, field text: it is empty"),
        ([7, 1000], "shard-000009.tar: sample 0, field text: token id 1000 is not below 1000"),
        (
            [7] * 31,
            "sample 0 has 33 tokens with bos and eos, more than the 32 that model.max_positions allows",
        ),
    ],
)
def test_a_bad_sample_stops_the_run_or_is_skipped(
    corpus: Path, whole: Path, sample: list[int], problem: str
) -> None:
    rewritten(corpus, sample)
    with pytest.raises(UserError, match=problem):
        samples(corpus, steps=25)
    sizes = dict(micro_batch_size=300, global_batch_size=300, window=100)
    read = chain.from_iterable(samples(corpus, steps=2, on_error="skip", **sizes)[0])
    all_good = chain.from_iterable(samples(whole, steps=2, **sizes)[0])
    assert {record[0] for record in read} == {record[0] for record in all_good}


def test_samples_that_are_too_long_are_reported_at_the_start(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(config(rewritten(corpus, [7] * 31), on_error="skip"))
    assert (
        "1 of 61 samples have more than the 32 that model.max_positions allows"
        in capsys.readouterr().err
    )
    with pytest.raises(
        UserError, match=r"7 of 7 samples have more than the 4 that data.micro_batch_size allows"
    ):
        short = write_corpus(corpus.parent / "short", [7], max_tokens=30, seed=3)
        make(config(short, on_error="skip", micro_batch_size=4, global_batch_size=4))


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_corpus_replaced_under_a_running_job_is_reported(corpus: Path, on_error: str) -> None:
    """Written over, file by file, by one of the same sizes."""
    loader = make(config(corpus, on_error=on_error))
    other = write_corpus(corpus.parent / "other", SIZES, seed=5)
    with (
        pytest.raises(UserError, match=r"manifest.json: the corpus has been replaced"),
        closing(iter(loader)) as it,
    ):
        next(it)
        for path in sorted(other.iterdir()):  # manifest.json first
            (corpus / path.name).write_bytes(path.read_bytes())
        for _ in range(40):
            next(it)


def test_a_corpus_replaced_between_two_jobs_is_refused(corpus: Path) -> None:
    state = make(config(corpus)).state_dict()
    write_corpus(corpus, SIZES, seed=5)
    with pytest.raises(
        UserError, match=r"the checkpoint was reading other data: the content of data.train"
    ):
        make(config(corpus)).load_state_dict(state)


def test_a_corpus_renamed_away_under_a_running_job_is_read_on_or_named(corpus: Path) -> None:
    loader = make(config(corpus, on_error="skip"))
    with pytest.raises(UserError, match=r"no corpus here"), closing(iter(loader)) as batches:
        next(batches)
        corpus.rename(corpus.parent / "elsewhere")
        for _ in range(40):
            next(batches)
