"""The wheel, in a virtual environment without the repository, does what the checkout does.

The environment has no package but the wheel; the path of the packages that the tests run with is
added by a `.pth` file, since installing torch would take minutes. Such a path is not searched for
`.pth` files, so an editable installation of the repository is not found through it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from janus_pt import JanusModel
from janus_pt.config.shipped import shipped_configs
from janus_pt.tokenizer import read_tokenizer
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.ranks import free_port
from tests.support.runs import ROOT, write_run_config

pytestmark = pytest.mark.slow

SOURCES = ("janus_pt", "configs", "data_prep", "launchers", "docs", "tests")
TEXTS = ["the mask reads", "the beam writes a token and the slot reads the content"]
# A wheel that was built in place of another one must not be mixed with it.
BUILD = (sys.executable, "-m", "build", "--no-isolation")


def output_of(*call: object, cwd: Path) -> str:
    """Standard output of a program that must succeed, run without the repository on its path."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    variables = {k: v for k, v in os.environ.items() if k not in hidden}
    variables |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in call], cwd=cwd, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{call}\n{done.stdout}{done.stderr}"[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def sources(folder: Path) -> Path:
    """A copy of the checkout, since a build leaves its files there."""
    copy = folder / "sources"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
        elif path.name in SOURCES:
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, copy / path.name, symlinks=True, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, folder: Path) -> Path:
    """The wheel as it is published: built from the source distribution."""
    output_of(*BUILD, "--outdir", folder / "dist", sources, cwd=folder)
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, folder: Path) -> Path:
    """The folder of programs of an environment with the wheel."""
    environment = folder / "environment"
    output_of(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    output_of(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


@pytest.fixture(scope="module")
def reader(folder: Path) -> Path:
    """A user's folder, with a model."""
    place = folder / "user"
    tokenizer = read_tokenizer(tokenizer_bytes())
    shape = {"vocab_size": tokenizer.vocab_size, "max_positions": 64, "ar_stream": "content"}
    model = tiny_model(5, **shape)
    JanusModel(model, tokenizer).save_pretrained(place / "model")
    (place / "in.txt").write_text("".join(text + "\n" for text in TEXTS))
    return place


def test_the_source_distribution_builds_the_wheel_of_the_checkout(
    wheel: Path, sources: Path, folder: Path
) -> None:
    output_of(*BUILD, "--wheel", "--outdir", folder / "direct", sources, cwd=folder)
    (direct,) = (folder / "direct").glob("*.whl")
    contents = [files_of(path) for path in (wheel, direct)]
    assert contents[0] == contents[1]
    # One name in site-packages, which holds all code of the checkout, and the files it reads.
    names = {name for name in contents[0] if not name.startswith("janus_pt-")}
    assert names == set(files_below(ROOT / "janus_pt"))
    assert {f"janus_pt/configs/{name}.json" for name in shipped_configs()} < names
    assert {f"janus_pt/configs/{name}.json" for name in shipped_configs(corpora=True)} < names


def files_below(folder: Path) -> Iterator[str]:
    """Files of a folder of the checkout and of folders it links to, without byte code."""
    for place, _, files in os.walk(folder, followlinks=True):
        if Path(place).name != "__pycache__":
            yield from (str(Path(place, file).relative_to(ROOT)) for file in files)


def files_of(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_repository_is_out_of_sight(programs: Path, reader: Path) -> None:
    code = "import janus_pt, sys; print(janus_pt.__file__); print(*sys.path, sep='\\n')"
    module, *path = output_of(programs / "python", "-c", code, cwd=reader).splitlines()
    assert Path(module).is_relative_to(programs.parent)
    assert str(ROOT) not in path
    missing = "from importlib.util import find_spec as f; print(f('launchers'), f('data_prep'))"
    assert output_of(programs / "python", "-c", missing, cwd=reader) == "None None\n"


def test_help_is_there_at_once(programs: Path, reader: Path) -> None:
    output_of(programs / "janus-pt", "--help", cwd=reader)  # writes the byte code
    before = children_seconds()
    text = output_of(programs / "janus-pt", "--help", cwd=reader)
    assert children_seconds() - before < 0.5
    assert "pretrain" in text and "convert" in text
    watched = (programs / "python", "-X", "importtime", "-m", "janus_pt", "--help")
    done = subprocess.run(watched, cwd=reader, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "janus_pt.commands.main" in imported
    assert imported.isdisjoint({"torch", "numpy", "pydantic", "deepspeed"})


def children_seconds() -> float:
    """Time of the processor that ended processes took: a busy machine makes it no longer."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_model_decodes_as_in_the_checkout(programs: Path, reader: Path) -> None:
    call = ("generate", "--model", "model", "--mode", "nar", "--max-length", 9, "--input", "in.txt")
    text = output_of(programs / "janus-pt", *call, cwd=reader)
    model = JanusModel.from_pretrained(reader / "model")
    expected = model.generate(TEXTS, mode="nar", max_length=9)
    assert text.splitlines() == [generation.text for generation in expected]


def test_a_model_is_converted(programs: Path, reader: Path) -> None:
    output_of(
        programs / "janus-pt", "convert", "ctranslate2", "model", "--output", "ct2", cwd=reader
    )
    assert (reader / "ct2" / "model.bin").stat().st_size > 0


def test_configurations_and_scales_are_part_of_it(programs: Path, reader: Path) -> None:
    call = ("pretrain", "--config", "janus_tiny", "--dry-run")
    assert "memory of a CPU process" in output_of(programs / "janus-pt", *call, cwd=reader)
    plan = output_of(programs / "janus-pt", "claims", "--dry-run", cwd=reader)
    assert [line.split()[0] for line in plan.splitlines()[1:]] == [
        f"{name}-seed1" for name in ("ar", "cmlm", "joint", "cmlmc", "janus")
    ]


def test_several_ranks_train(programs: Path, reader: Path) -> None:
    config = write_run_config(reader, schedule__warmup_steps=1, run__max_steps=2)
    call = ("pretrain", "--config", config, "--num-gpus", 2, "--master-port", free_port())
    log = output_of(programs / "janus-pt", *call, "--set", "run.eval_every=2", cwd=reader)
    assert "dist_world_size=2" in log
    assert (reader / "run" / "export" / "model.safetensors").is_file()


CONSUMER = """
from janus_pt import JanusModel

model = JanusModel.from_pretrained("model")
text: str = model.generate(["a"], mode="nar")[0].text
"""
MYPY = """
[mypy]
disallow_any_expr = True
[mypy-torch.*]
follow_imports = skip
"""


def test_its_types_are_checked_where_it_is_used(programs: Path, reader: Path) -> None:
    (reader / "mypy.ini").write_text(MYPY)
    (reader / "right.py").write_text(CONSUMER)
    (reader / "wrong.py").write_text(CONSUMER.replace("text: str", "text: int"))
    mypy = (sys.executable, "-m", "mypy", "--python-executable", programs / "python")
    output_of(*mypy, "right.py", cwd=reader)
    with pytest.raises(AssertionError, match="Incompatible types in assignment"):
        output_of(*mypy, "wrong.py", cwd=reader)
