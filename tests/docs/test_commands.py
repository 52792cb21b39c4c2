"""Every command of the README and the guides runs, in their order, on small data.

A command runs as the page has it, with flags added that make it small (`SMALLER`). What needs
other machines or runs elsewhere is named in `ELSEWHERE` with the reason. A command that is in
neither list still runs, as it stands.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import pytest

from janus_pt.config.schema import AdapterConfig
from tests.support.commands import run_program
from tests.support.doors import write_adapter, write_export, write_fairseq
from tests.support.huggingface import save_bart
from tests.support.ranks import free_port
from tests.support.runs import ROOT, environment

# All commands together are one fixture: minutes, and more beside other tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PAGES = [
    "README.md",
    "docs/index.md",
    *(
        f"docs/guides/{n}.md"
        for n in (
            "corpora",
            "cluster",
            "tasks",
            "finetuning",
            "decoding",
            "other_tools",
            "mlflow",
            "huggingface",
        )
    ),
]
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
TIMEOUT_S = 400

VOCABULARY = 400
SMALL_MODEL = (
    "--set model.hidden_size=32 --set model.ffn_hidden_size=48 --set model.num_attention_heads=2 "
    "--set model.encoder_layers=1 --set model.decoder_layers=1"
)
SMALL_RUN = (
    "--set data.global_batch_size=1024 --set data.micro_batch_size=512 --set data.num_workers=0 "
    "--set run.max_steps=2 --set run.eval_every=0 --set checkpoint.every=2 "
    "--set tracking.enabled=false --set schedule.warmup_steps=1"
)
SMALLER: dict[str, str] = {
    # part of a command -> flags that make it small; the last value of a flag counts
    "train-tokenizer": f"--vocab-size {VOCABULARY}",
    "prep demo-corpus": "--max-megabytes 1",
    "prep cmudict": "--dictionary words.dict",
    # The model has learnt nothing, and its longest outputs may have more tokens than a task allows.
    "janus-pt distill": "--max-length 20",
    "--config janus_base": f"{SMALL_MODEL} {SMALL_RUN} --set precision.dtype=float32 "
    f"--set model.vocab_size={VOCABULARY}",
    "--config summary_tiny": SMALL_RUN,
    "--config tasks/glge_bart_janus": f"{SMALL_RUN} --set precision.dtype=float32",
    "--config bart_janus_base": f"{SMALL_RUN} --set precision.dtype=float32",
    "--config configs/tasks/fairytaleqa.json": f"{SMALL_MODEL} {SMALL_RUN} "
    f"--set model.vocab_size={VOCABULARY}",
}
ELSEWHERE: dict[str, str] = {
    "pip install ": "tests/packaging installs the wheel",
    "janus-pt prep corpus": "needs a crawl; tests/data_prep/pipeline/test_command.py",
    "ray start": "needs Ray",
    "janus-pt gpu-check": "needs a GPU; tests/benchmark/test_gpu_check.py",
    "janus-pt demo": "CI runs it",
    "make ": "CI runs it, and this test is part of what it runs",
    "source .venv/bin/activate": "the tests run in that environment",
    "sbatch ": "needs Slurm; test_the_slurm_script_is_a_shell_script",
    "deepspeed --hostfile": "needs several nodes; tests/parallel/test_hosts.py starts two hosts",
    "torchrun --nnodes=2": "needs several nodes; tests/parallel/test_hosts.py starts two hosts",
    "janus-pt claims": "minutes of training; tests/claims runs it from end to end",
    "convert export": "averages five validated checkpoints; tests/train/test_early_stopping.py",
    "mlflow ui": "a server that runs until it is stopped",
    "mlflow models serve": "tests/registry/test_register.py serves a model and asks it",
    "curl localhost:5001": "the same",
    "curl ": "test_the_server_answers_as_the_guide_asks",
}
EXPORTS = ("demo_spoken", "demo_finetune", "teacher", "multi30k_ende", "bang", "janus")
"""Run folders that pages take for granted; they get the README's fine-tuned model."""


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    language: str
    text: str


def commands() -> list[Command]:
    """All commands of all pages; of a Python block the whole block is one."""
    result = []
    for page in PAGES:
        for block in BLOCK.finditer((ROOT / page).read_text()):
            if block["language"] == "text":  # what a command prints
                continue
            if block["language"] == "python":
                result.append(Command(page, "python", block["text"]))
                continue
            lines = block["text"].replace("\\\n", " ").splitlines()
            result += [Command(page, "sh", line.strip()) for line in lines if line.strip()]
    return [command for command in result if is_command(command)]


def is_command(command: Command) -> bool:
    """Whether it can be run at all: not a piece of JSON or of a dictionary."""
    return not command.text.lstrip().startswith(('"', "{", "}", "[", "]", "layout"))


def write_texts(folder: Path) -> None:
    """The reader's data: books, pairs, and folders of tasks, all of the project's own pages."""
    pages = (line for page in sorted((ROOT / "docs").rglob("*.md")) for line in page.open())
    lines = [line.strip() for line in pages if line[0].isalpha() and 30 < len(line) < 100]
    books = [" ".join(lines[k : k + 20]) for k in range(0, len(lines), 20)]
    for name, part in (("books", books), ("books_valid", books[:2])):
        with lzma.open(folder / f"{name}.jsonl.xz", "wt") as file:
            file.writelines(json.dumps({"text": book}) + "\n" for book in part)
    pairs = {"src": lines[:200], "tgt": [line.upper() for line in lines[:200]]}
    for name, part in (("train", slice(None)), ("dev", slice(20)), ("test", slice(8))):
        for side, language in (("src", "de"), ("tgt", "en")):
            text = "".join(line + "\n" for line in pairs[side][part])
            (folder / f"{name}.{language}").write_text(text)
            for task in ("multi30k", "glge/easy/squadqg_data/org_data"):
                (folder / task).mkdir(parents=True, exist_ok=True)
                (folder / task / f"{name}.{side}").write_text(text)
    (folder / "fairytaleqa").mkdir()
    for name, part in (("train", slice(None)), ("val", slice(8))):
        with gzip.open(folder / "fairytaleqa" / f"{name}.jsonl.gz", "wt") as file:
            for source, target in zip(pairs["src"][part], pairs["tgt"][part], strict=True):
                row = {"answer1": source, "context": source, "question": target}
                file.write(json.dumps(row) + "\n")
    for name in ("hyp", "ref1", "ref2", "other"):
        (folder / f"{name}.txt").write_text("".join(line + "\n" for line in lines[:8]))


def write_dictionary(folder: Path) -> None:
    """`words.dict`: a few thousand words that are said as they are written, more than dev and test take."""
    phonemes = {
        "a": "AA1",
        "d": "D",
        "e": "EH0",
        "k": "K",
        "n": "N",
        "o": "OW0",
        "s": "S",
        "t": "T",
    }
    words = islice(product(phonemes, repeat=5), 8000)
    lines = ["".join(word) + " " + " ".join(map(phonemes.__getitem__, word)) for word in words]
    (folder / "words.dict").write_text("".join(line + "\n" for line in lines))


def write_models(folder: Path) -> None:
    """The reader's models for other tools: a content-stream export, an adapter, a checkpoint of fairseq."""
    write_export(folder / "model", ar_position_offset=0)
    write_adapter(folder / "lora", AdapterConfig(), folder / "model")
    write_fairseq(folder)
    save_bart(folder / "bart", max_position_embeddings=1024)


def made_small(text: str) -> str:
    """The command with the flags that make it small, and a port of its own."""
    text = text.replace(" …", "")
    added = [flags for part, flags in SMALLER.items() if part in text]
    command, redirection, file = text.partition(" < ")
    if command.startswith("deepspeed "):
        command = command.replace("deepspeed ", f"deepspeed --master_port {free_port()} ", 1)
    if "--num-gpus" in command:
        added.append(f"--num-gpus 2 --master-port {free_port()}")
    return " ".join([command, *added, redirection, file])


def run(command: Command, place: Path) -> None:
    """Run it in the reader's folder; it must succeed."""
    variables = {**environment(), "MPLBACKEND": "agg"}
    if command.language == "python":
        call, stdin = ["python", "-c", command.text], None
    else:
        call, stdin = split_command(made_small(command.text))
    if call[0] in ("janus-pt", "python"):
        source = place / stdin if stdin else None
        done = run_program(call, place, variables, TIMEOUT_S, source)
    else:
        done = subprocess.run(
            call, cwd=place, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    assert done.returncode == 0, f"{command.page}: {call[-1]}\n{done.stdout}{done.stderr}"[-6000:]


def split_command(text: str) -> tuple[list[str], str]:
    """Its words, and the file that it reads, if any."""
    words = shlex.split(text)
    if "<" not in words:
        return words, ""
    place = words.index("<")
    return words[:place] + words[place + 2 :], words[place + 1]


def elsewhere(text: str) -> bool:
    """Whether a command is in the list of those that run somewhere else."""
    return any(part in text for part in ELSEWHERE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the pages would have it after all their commands."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("launchers", "data_prep", "configs", "janus_pt"):
        (folder / name).symlink_to(ROOT / name)
    write_texts(folder)
    write_dictionary(folder)
    write_models(folder)
    for command in commands():
        if elsewhere(command.text):
            continue
        run(command, folder)
        if (export := folder / "runs/finetune/export").exists():
            for name in EXPORTS:
                if not (folder / "runs" / name).exists():
                    shutil.copytree(export, folder / "runs" / name / "export")
    return folder


def test_every_command_runs_as_the_pages_have_it(place: Path) -> None:
    for made in ("corpus/manifest.json", "runs/finetune/export/model.safetensors", "test.ar"):
        assert (place / made).stat().st_size > 0


def test_no_entry_of_the_tables_is_out_of_date() -> None:
    texts = [command.text for command in commands()]
    unused = [part for part in (*SMALLER, *ELSEWHERE) if not any(part in text for text in texts)]
    assert unused == []


def test_the_server_answers_as_the_guide_asks(place: Path) -> None:
    port = free_port()
    model = place / "runs/finetune/export"
    call = [sys.executable, "-m", "janus_pt", "serve", "--model", str(model)]
    (request,) = (c.text for c in commands() if c.text.startswith("curl localhost:8000"))
    with subprocess.Popen([*call, "--port", str(port)], env=environment()) as server:
        try:
            wait_until_healthy(port)
            answer = subprocess.run(
                shlex.split(request.replace("localhost:8000", f"localhost:{port}")),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert len(json.loads(answer.stdout)["outputs"]) == 1
        finally:
            server.terminate()


def wait_until_healthy(port: int) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not start")


def test_the_slurm_script_is_a_shell_script() -> None:
    script = ROOT / "launchers/slurm/pretrain.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!")
