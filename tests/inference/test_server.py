"""The server, over HTTP: answers, limits, back-pressure, metrics; the launcher."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn

from janus_pt import JanusModel
from janus_pt.inference.server.app import MAX_BODY_BYTES, MAX_TEXTS, create_app
from janus_pt.tokenizer import read_tokenizer
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.runs import run_script

LAUNCHER = Path(__file__).resolve().parents[2] / "launchers" / "serve.py"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
TEXTS = [
    "the mask reads",
    "",
    "the beam writes a token and the slot reads the content",
    "pass",
    "ünï — \u2603",
]
WAYS: list[dict[str, Any]] = [
    {"mode": "ar"},
    {"mode": "ar", "options": {"num_beams": 3, "num_return_sequences": 2}},
    {"mode": "nar", "options": {"iterations": 3}},
    {"mode": "speculative"},
]


@pytest.fixture(scope="module")
def model() -> JanusModel:
    tokenizer = read_tokenizer(tokenizer_bytes())
    return JanusModel(tiny_model(5, vocab_size=tokenizer.vocab_size, max_positions=64), tokenizer)


@dataclass
class Ask:
    """Sends requests to a server on this machine."""

    port: int

    def __call__(
        self, path: str, body: Any = None, raw: bytes | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of the answer."""
        return ask(self.port, path, body, raw)


@contextmanager
def serving(model: JanusModel, **changes: Any) -> Iterator[Ask]:
    """A server in a thread; what is yielded sends a request and returns status, headers and body."""
    settings = dict(batch_size=8, max_delay=0.005, max_waiting=64, time_limit=30.0) | changes
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(model, **settings), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield Ask(port)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()


def ask(
    port: int, path: str, body: Any = None, raw: bytes | None = None
) -> tuple[int, dict[str, str], Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    content = raw if raw is not None else None if body is None else json.dumps(body).encode()
    connection.request(
        "GET" if content is None else "POST", path, content, {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return (
        response.status,
        headers,
        json.loads(answer) if "json" in headers["content-type"] else answer.decode(),
    )


@pytest.fixture(scope="module")
def server(model: JanusModel) -> Iterator[Ask]:
    with serving(model) as send:
        yield send


def offline(model: JanusModel, texts: list[str], way: dict[str, Any]) -> list[dict[str, Any]]:
    found = model.generate(texts, way["mode"], **way.get("options", {}))
    return [
        {"text": one.text, "tokens": one.tokens, "decoder_passes": one.decoder_passes}
        for one in found
    ]


def online(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: output[name] for name in ("text", "tokens", "decoder_passes")}
        for output in answer["outputs"]
    ]


def test_many_clients_get_what_they_would_get_offline(server: Ask, model: JanusModel) -> None:
    """All ways at once, from many threads, so that batches mix."""
    jobs = [(way, [text]) for way in WAYS for text in TEXTS] + [(way, TEXTS) for way in WAYS]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: server("/generate", {"texts": job[1], **job[0]}), jobs))
    for (way, texts), (status, _, answer) in zip(jobs, answers, strict=True):
        assert status == 200 and online(answer) == offline(model, texts, way)


def test_requests_that_arrive_together_share_a_batch(
    model: JanusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    generate = model.generate_from_ids
    monkeypatch.setattr(
        model,
        "generate_from_ids",
        lambda sources, *a: sizes.append(len(sources)) or generate(sources, *a),
    )
    with serving(model, max_delay=0.5) as send, ThreadPoolExecutor(8) as pool:
        start = time.monotonic()
        answers = list(pool.map(lambda i: send("/generate", {"texts": [TEXTS[i % 3]]}), range(8)))
        assert time.monotonic() - start < 20
    assert [status for status, *_ in answers] == [200] * 8
    assert sum(sizes) == 8 and max(sizes) > 1


def test_an_unfolded_output_ends_in_what_mask_predict_writes(
    server: Ask, model: JanusModel
) -> None:
    status, _, answer = server("/unfold", {"text": TEXTS[2], "iterations": 3})
    assert status == 200 and len(answer["passes"]) == 3
    (expected,) = model.generate([TEXTS[2]], "nar", iterations=3)
    last = answer["passes"][-1]
    assert [place["token"] for place in last] == expected.tokens and answer["text"] == expected.text
    assert all(place["written"] for place in answer["passes"][0]) and not all(
        place["written"] for place in last
    )
    assert all(0 < place["probability"] <= 1 for one in answer["passes"] for place in one)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"texts": ["a"], "mode": "sampling"}, 400, "mode: there is no 'sampling'"),
        (
            {"texts": ["a"], "options": {"iterations": 3}},
            400,
            'iterations: mode "ar" has no such option',
        ),
        (
            {"texts": ["a"], "options": {"num_beams": 33}},
            400,
            "num_beams: this server allows at most 32",
        ),
        ({"texts": ["a"], "options": {"max_length": 1000}}, 400, "max_length: 1000 is more than"),
        ({"texts": ["a", "the mask " * 100]}, 400, "texts.1: "),
        ({"texts": []}, 422, ""),
        ({"texts": ["a"] * (MAX_TEXTS + 1)}, 422, ""),
        ({"texts": ["a"], "beams": 3}, 422, ""),
        ({"texts": "a"}, 422, ""),
        ({"texts": ["a" * MAX_BODY_BYTES]}, 413, "a body has at most"),
    ],
)
def test_mistakes_are_answered(
    server: Ask, body: dict[str, Any], status: int, message: str
) -> None:
    got, _, answer = server("/generate", body)
    assert got == status
    assert answer.get("error", "").startswith(message)
    assert server("/generate", {"texts": ["pass"]})[0] == 200


def test_what_is_no_json_is_answered(server: Ask) -> None:
    assert server("/generate", raw=b"\xff{")[0] in (400, 422)


def test_too_many_are_turned_away_and_the_slow_given_up(
    model: JanusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, generate = threading.Event(), model.generate_from_ids
    monkeypatch.setattr(model, "generate_from_ids", lambda *a: hold.wait(30) and generate(*a))
    with (
        serving(model, batch_size=1, max_delay=0.0, max_waiting=2, time_limit=3.0) as send,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: send("/generate", {"texts": ["pass"]}), range(8)))
        statuses = sorted(status for status, *_ in answers)
        assert set(statuses) == {429, 503} and statuses.count(503) <= 3
        assert all(headers["retry-after"] == "1" for status, headers, _ in answers if status == 429)
        hold.set()
        status = 0
        for _ in range(100):
            status, _, answer = send("/generate", {"texts": ["pass"]})
            if status == 200:
                break
            time.sleep(0.05)
        assert status == 200 and online(answer)[0]["text"] == model.generate(["pass"])[0].text


def test_health_metrics_and_page(server: Ask, model: JanusModel) -> None:
    server("/generate", {"texts": ["the mask"], "mode": "nar"})
    assert server("/health")[2] == {
        "status": "ok",
        "vocab_size": model.config.vocab_size,
        "device": "cpu",
    }
    metrics = server("/metrics")[2]
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values['janus_requests_total{path="/generate",status="200"}']) >= 1
    assert float(values['janus_tokens_total{mode="nar"}']) > 0
    assert float(values["janus_waiting_inputs"]) == 0
    page = server("/")[2]
    assert (
        "<form" in page and "/unfold" in page and "http://" not in page and "https://" not in page
    )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_in_a_browser(model: JanusModel, tmp_path: Path) -> None:
    """Both outputs appear, each pass of mask-predict in a line of its own, and a mistake is told."""
    assert CHROMIUM is not None
    browser = (
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
    )
    with serving(model) as send:

        def visit(query: dict[str, Any]) -> str:
            url = f"http://127.0.0.1:{send.port}/?{urlencode(query)}"
            command = [*browser, "--timeout=20000", "--virtual-time-budget=20000", url]
            return subprocess.run(
                command, capture_output=True, text=True, timeout=180, check=True
            ).stdout

        page = visit({"text": TEXTS[2], "passes": 3})
        bad = visit({"text": "the mask " * 100})
    (ar,) = model.generate([TEXTS[2]])
    (nar,) = model.generate([TEXTS[2]], "nar", iterations=3)
    assert page.count('class="pass"') == 4 and "pass 3, " in page
    assert page.count('class="piece') == len(ar.tokens) + 3 * len(nar.tokens)
    assert page.count('class="piece kept"') > 0 and f"{ar.decoder_passes} passes, " in page
    assert "the model reads at most 64" in bad and 'class="pass"' not in bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nowhere"), "nowhere: no exported model"),
        (("--model", "x", "--batch-size", "0"), "batch_size: "),
    ],
)
def test_the_launcher_tells_mistakes_in_one_line(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script(monkeypatch, "launchers/serve.py", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_the_launcher_names_the_extra_that_is_missing(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # None in the table of modules makes the import fail, as if the package were not installed.
    monkeypatch.setitem(sys.modules, package, None)
    assert run_script(monkeypatch, "launchers/serve.py", "--model", "nowhere") == 2
    message = capsys.readouterr().err
    assert message == f"error: {package} is not installed; run: pip install 'janus_pt[serve]'\n"


def test_decoding_needs_no_package_of_the_server() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["fastapi", "uvicorn", "prometheus_client"]))
import janus_pt.inference.cli, janus_pt.inference.text_files, janus_pt.inference.trace
from tests.support.runs import run_script
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_the_launcher_holds_64_clients(model: JanusModel, tmp_path: Path) -> None:
    """For 15 s; nothing but answers and 429, and every answer is the offline one. It listens on this machine only."""
    model.save_pretrained(tmp_path / "export")
    expected = {
        text: one.text
        for text, one in zip(TEXTS, model.generate(TEXTS, max_length=12), strict=True)
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(LAUNCHER),
        "--model",
        str(tmp_path / "export"),
        "--port",
        str(port),
    ]
    process = subprocess.Popen([*command, "--max-waiting", "48"])
    try:
        wait_until_up(port)
        until = time.monotonic() + 15
        with ThreadPoolExecutor(64) as pool:
            counts = list(
                pool.map(lambda client: one_client(port, client, until, expected), range(64))
            )
        assert (
            all(answered for answered, _ in counts)
            and sum(answered for answered, _ in counts) > 200
        )
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_up(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            assert ask(port, "/health")[0] == 200
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def one_client(port: int, client: int, until: float, expected: dict[str, str]) -> tuple[int, int]:
    """Ask again and again; how often there was an answer, and a 429."""
    answered = refused = 0
    while time.monotonic() < until or not answered:
        text = TEXTS[(client + answered) % len(TEXTS)]
        status, _, answer = ask(port, "/generate", {"texts": [text], "options": {"max_length": 12}})
        assert status in (200, 429)
        if status == 429:
            refused += 1
            time.sleep(0.05)
            continue
        answered += 1
        assert answer["outputs"][0]["text"] == expected[text]
    return answered, refused
