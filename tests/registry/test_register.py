"""Registered models: MLflow's own server answers as our API does, its registry says where they come from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from janus_pt import JanusModel
from janus_pt.registry.register import Store, register
from janus_pt.utils.errors import UserError
from tests.support.ranks import free_port
from tests.support.runs import ROOT, environment, launch, write_run_config

pytestmark = pytest.mark.slow
TEXTS = ["Ein Haus im Wald.", "the two", "x"]
START_S = 180
EXPERIMENT = "1"
"""The id of the only experiment besides MLflow's own."""


@dataclass(frozen=True)
class Registered:
    """A model that a run has trained, after `evaluate` and `convert mlflow`."""

    folder: Path
    uri: str
    printed: str

    @property
    def export(self) -> Path:
        return self.folder / "run/export"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    config = write_run_config(
        folder, tracking__uri=uri, tracking__enabled=True, tracking__system_metrics=False
    )
    run("pretrain.py", "--config", config)
    for side in ("de", "en"):
        (folder / f"test.{side}").write_text("the cat\na dog\n")
    report = folder / "report.json"
    task = ("--task", "nmt/de-en", "--data", folder, "--mode", "ar,nar", "--json", report)
    run("evaluate.py", "task", "--model", folder / "run/export", *task)
    store = ("--uri", uri, "--name", "tiny", "--alias", "best", "--evaluation", report)
    printed = run("convert.py", "mlflow", folder / "run/export", *store)
    return Registered(folder, uri, printed)


def run(script: str, *arguments: object) -> str:
    done = launch(script, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def client(registered: Registered) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(registered.uri)


@pytest.fixture(scope="module")
def server(registered: Registered) -> Iterator[str]:
    """`mlflow models serve` on the registry; where it answers."""
    port = free_port()
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "models", "serve", "-m", "models:/tiny@best", "--port", str(port)]
    command += ["--env-manager", "local"]
    variables = {**environment(), "MLFLOW_TRACKING_URI": registered.uri}
    # The model brings its own copy of the package.
    del variables["PYTHONPATH"]
    log = registered.folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    deadline = time.monotonic() + START_S
    while not answers(f"http://127.0.0.1:{port}/ping"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}/invocations"
    process.terminate()
    process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def ask(url: str, **body: Any) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"mode": "ar", "num_beams": 3, "length_penalty": 0.5}, {"mode": "nar", "iterations": 3}],
)
def test_the_server_answers_what_our_api_gives(
    registered: Registered, server: str, parameters: dict[str, Any]
) -> None:
    model = JanusModel.from_pretrained(registered.export, device="cpu")
    status, answer = ask(server, inputs=TEXTS, params=parameters)
    assert status == 200
    expected = model.generate(TEXTS, **parameters)
    for ours, served in zip(expected, answer["predictions"], strict=True):
        assert served.pop("token_scores") == pytest.approx(ours.token_scores, rel=1e-6)
        assert served.pop("score") == pytest.approx(ours.score, rel=1e-6)
        assert served == {name: value for name, value in asdict(ours).items() if name in served}
        assert served.keys() >= {"text", "tokens", "decoder_passes"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["x"], "params": {"mode": "nar", "num_beams": 2}}, "num_beams: mode"),
        ({"inputs": ["x"], "params": {"mode": "left"}}, "there is no 'left'"),
        ({"inputs": ["x"], "params": {"num_beams": "two"}}, "num_beams"),
        ({"inputs": ["x " * 100]}, "the model reads at most"),
    ],
)
def test_the_server_refuses_mistakes_in_one_message(
    server: str, body: dict[str, Any], message: str
) -> None:
    status, answer = ask(server, **body)
    assert status == 400 and message in answer["message"] and "stack_trace" not in answer


def test_the_registry_shows_where_the_model_comes_from(registered: Registered, client: Any) -> None:
    assert registered.printed == "models:/tiny@best\n"
    version = client.get_model_version_by_alias("tiny", "best")
    trained = json.loads((registered.folder / "run/mlflow_run.json").read_text())["run_id"]
    manifest = json.loads((registered.folder / "corpus/manifest.json").read_text())
    fingerprint = manifest_fingerprint(manifest)
    tokenizer = registered.export / "tokenizer.model"
    weights = registered.export / "model.safetensors"
    revision = ["git", "rev-parse", "HEAD"]
    git = subprocess.run(revision, cwd=ROOT, capture_output=True, text=True, check=True)
    for tags in (version.tags, client.get_run(version.run_id).data.tags):
        assert tags["training_run"] == trained
        assert tags["corpora"] == f"corpus {fingerprint}"
        assert tags["tokenizer_sha256"] == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        assert tags["model_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert tags["training_git_commit"] == git.stdout.strip()
    assert client.get_run(version.run_id).data.tags["mlflow.parentRunId"] == trained
    assert "janus model" in version.description and fingerprint in version.description
    for run_id in (trained, version.run_id):
        [corpus] = client.get_run(run_id).inputs.dataset_inputs
        assert corpus.dataset.digest == fingerprint[:36]
        assert [tag.value for tag in corpus.tags] == ["training"]


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """The hash of everything but the files that the corpus was made from."""
    content = {name: value for name, value in manifest.items() if name != "sources"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_evaluation_is_beside_the_model(registered: Registered, client: Any) -> None:
    import mlflow

    version = client.get_model_version_by_alias("tiny", "best")
    report = json.loads((registered.folder / "report.json").read_text())
    mlflow.set_tracking_uri(registered.uri)
    mlflow.set_experiment("janus_pt")
    table = mlflow.load_table("evaluation.json", [version.run_id])
    assert table["mode"].tolist() == ["ar", "nar"]
    for row, (_, logged) in zip(report["rows"], table.iterrows(), strict=True):
        for name, value in row["metrics"].items():
            assert logged[name] == pytest.approx(value)
            key = f"test/nmt/de-en/{row['mode']}/{name}"
            assert client.get_run(version.run_id).data.metrics[key] == pytest.approx(value)
    files = [file.path for file in client.list_artifacts(version.run_id, "evaluation")]
    assert len(files) == 3 and "evaluation/report.json" in files


ISOLATED = """
import json, sys
sys.path.append(sys.argv[2])
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(["the"], params={"mode": "nar"})))
import janus_pt
assert janus_pt.__file__.startswith(sys.argv[1]), janus_pt.__file__
"""


def test_the_requirements_are_all_that_a_server_needs(
    registered: Registered, client: Any, tmp_path: Path
) -> None:
    """With only the required packages and what they require, the model's own code decodes."""
    import mlflow

    mlflow.set_tracking_uri(registered.uri)
    local = mlflow.artifacts.download_artifacts("models:/tiny@best", dst_path=str(tmp_path))
    lines = Path(local, "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in lines)
    packages = closure(lines)
    assert {"torch", "mlflow"} <= packages and not packages & {"deepspeed", "megatron-core"}
    link_packages(packages, tmp_path / "packages")
    # -S: without the packages of this environment.
    start = [sys.executable, "-S", "-c", ISOLATED, local, str(tmp_path / "packages")]
    variables = environment()
    del variables["PYTHONPATH"]
    done = subprocess.run(start, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [served] = json.loads(done.stdout)
    [ours] = JanusModel.from_pretrained(registered.export, device="cpu").generate(["the"], "nar")
    assert served["tokens"] == ours.tokens


def closure(lines: list[str]) -> set[str]:
    """What pip installs for these requirements, by canonical name."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        known = {name, *(f"{name}[{extra}]" for extra in requirement.extras)}
        if known <= found:
            continue
        found |= known
        for line in requires(name) or []:
            needed = Requirement(line)
            extras = ({"extra": extra} for extra in ("", *requirement.extras))
            if needed.marker is None or any(needed.marker.evaluate(e) for e in extras):
                waiting.append(needed)
    return {name for name in found if "[" not in name}


def link_packages(names: set[str], folder: Path) -> None:
    """A folder of installed packages that has only these."""
    folder.mkdir()
    for name in names:
        for file in distribution(name).files or []:
            link = folder / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(distribution(name).locate_file(file.parts[0]))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "Invalid model name 'a/b'"),
        ({"alias": "v1"}, "alias name 'v1' is reserved"),
        ({"alias": "no spaces"}, "Invalid alias name"),
        ({"store": Store("http://127.0.0.1:9", "x")}, "MLflow at http://127.0.0.1:9: "),
        ({"store": Store("sqlite:////proc/none/x.db", "x")}, "MLflow at sqlite:////proc/none"),
        ({"evaluations": [ROOT / "pyproject.toml"]}, "pyproject.toml: no report of janus-pt"),
        ({"model": ROOT / "docs"}, "docs: no exported model here"),
    ],
)
def test_mistakes_end_in_one_message_and_register_nothing(
    registered: Registered, client: Any, changes: dict[str, Any], message: str
) -> None:
    store = Store(registered.uri, "janus_pt")
    given = {"model": registered.export, "name": "new", "alias": None, "store": store}
    runs = len(client.search_runs([EXPERIMENT]))
    with pytest.raises(UserError, match=message):
        register(**{**given, **changes})
    assert [model.name for model in client.search_registered_models()] == ["tiny"]
    assert len(client.search_runs([EXPERIMENT])) == runs
