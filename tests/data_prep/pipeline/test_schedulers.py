"""`janus-pt prep corpus` on Slurm and Ray: the same corpus as on this machine alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from janus_pt.utils.extras import is_installed
from tests.data_prep.pipeline.test_command import COMMAND, write_config
from tests.data_prep.pipeline.test_shards import config, write_documents
from tests.support.corpus_text import corpus_files, document
from tests.support.planted import run_inline
from tests.support.runs import environment
from tests.support.schedulers import (
    busy_workers,
    kill_tree,
    ray_cluster,
    slurm,
    slurm_is_missing,
)


def write_more_documents(folder: Path) -> None:
    """Four files, each of which takes seconds."""
    write_documents(folder, files=0)
    for file in range(4):
        texts = [document(file * 1000 + number) for number in range(1000)]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"part-{file}.jsonl").write_text("".join(lines))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not is_installed("ray"), reason="needs ray: pip install 'janus_pt[ray]'")
def test_ray_gives_the_same_corpus_though_a_worker_and_a_node_are_killed(tmp_path: Path) -> None:
    write_more_documents(tmp_path)
    exact = {"exact": ["text"]}
    run_inline(config(tmp_path, tasks=4, deduplication=exact))
    with ray_cluster(nodes=2) as cluster:
        section = {"address": cluster.address, "memory_gb": 0.2}
        path = write_config(tmp_path, "ray", deduplication=exact, ray=section)
        log = tmp_path / "log.txt"
        with log.open("w") as output:
            command = [*COMMAND, path.name, "--tasks", "4", "--executor", "ray"]
            # Relative paths are those of the folder in which the command was given.
            build = subprocess.Popen(command, env=environment(), stderr=output, cwd=tmp_path)
        wait_for(lambda: busy_workers(cluster.nodes), build, log)[0].kill()
        marks = tmp_path / "ray.build" / "logs" / "clean" / "completions"
        wait_for(lambda: len(list(marks.glob("*"))) == 4, build, log)
        wait_for(lambda: busy_workers(cluster.nodes[1:]), build, log)
        kill_tree(cluster.nodes[1])
        assert build.wait(timeout=600) == 0, log.read_text()
    assert log.read_text().count("died with their process or node") == 2
    assert corpus_files(tmp_path / "ray") == corpus_files(tmp_path / "corpus")


def wait_for(condition: Callable[[], Any], build: subprocess.Popen[bytes], log: Path) -> Any:
    """What `condition` returns as soon as it is true."""
    deadline = time.monotonic() + 300
    while not (result := condition()):
        assert build.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return result


STAND_IN = """#!{python}
\"\"\"sbatch, as far as datatrove needs it: runs each task of an array, one after another, before it answers.\"\"\"
import os, pathlib, re, subprocess, sys
here = pathlib.Path(__file__).parent
script = pathlib.Path(sys.argv[-1])
number = len(list(here.glob("job-*"))) + 1
copy = here / f"job-{{number}}"
copy.write_text(script.read_text())
last = int(re.search(r"--array=0-(\\d+)", copy.read_text())[1])
wanted = [a for a in sys.argv if a.startswith("--dependency")]
for dependency in wanted:
    for job in re.findall(r"\\d+", dependency):
        assert (here / f"done-{{job}}").exists(), "a job was submitted before the one it waits for"
failed = False
for task in range(last + 1):
    given = {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "localhost", "SLURM_JOB_ID": str(number)}}
    with open(here / f"out-{{number}}-{{task}}", "w") as output:
        done = subprocess.run(["bash", str(copy)], env={{**os.environ, **given}}, stdout=output, stderr=output)
    failed |= done.returncode != 0
if not failed:
    (here / f"done-{{number}}").touch()
print("Submitted batch job", number)
"""


def write_stand_ins(folder: Path) -> None:
    """`sbatch`, `srun` and `scontrol` that run on this machine."""
    scripts = {
        "sbatch": STAND_IN.format(python=sys.executable),
        # Options, each a word or `-n 1`, then the command.
        "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho localhost\n",
    }
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def run_on_slurm(folder: Path, env: dict[str, str]) -> Path:
    """Submit a build of two tasks; its configuration."""
    section = {"partition": "tiny", "time": "00:10:00", "memory_gb": 1}
    path = write_config(folder, "slurm", deduplication={}, slurm=section)
    command = [*COMMAND, str(path), "--tasks", "2", "--executor", "slurm"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1000)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """The files of the corpus that this machine builds alone."""
    write_documents(tmp_path)
    run_inline(config(tmp_path, tasks=2))
    return corpus_files(tmp_path / "corpus")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_stand_in_for_slurm_gives_the_same_corpus(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Where there is no Slurm: scripts, order and arrays are datatrove's, the scheduler is not Slurm."""
    write_stand_ins(tmp_path / "bin")
    run_on_slurm(tmp_path, {**environment(), "PATH": f"{tmp_path / 'bin'}:{environment()['PATH']}"})
    assert "#SBATCH --partition=tiny" in (tmp_path / "bin" / "job-1").read_text()
    assert corpus_files(tmp_path / "slurm") == expected


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(bool(slurm_is_missing()), reason=slurm_is_missing())
def test_slurm_gives_the_same_corpus(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with slurm() as env:
        run_on_slurm(tmp_path, env)
        deadline = time.monotonic() + 900
        while not (tmp_path / "slurm" / "manifest.json").exists():
            assert time.monotonic() < deadline, slurm_logs(tmp_path)
            time.sleep(0.2)
    assert corpus_files(tmp_path / "slurm") == expected


def slurm_logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("slurm.build/logs/*/slurm_logs/*"))
