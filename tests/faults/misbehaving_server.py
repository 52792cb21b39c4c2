"""A local HTTP file server that does as it is told: late, with errors, or with half a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves a folder. `faults` maps a file name to what happens to each of its next GETs, "" being nothing."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what is being tested."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.gets: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        self._headers(path.stat().st_size)

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        path = self.server.folder / name
        self.server.gets.append(name)
        if not path.is_file():
            return self.send_error(404)
        fault = next(iter(self.server.faults.get(name, [])), "")
        self.server.faults[name] = self.server.faults.get(name, [])[1:]
        self._answer(fault, path.read_bytes())

    def _answer(self, fault: str, content: bytes) -> None:
        if fault == "error":
            return self.send_error(503)
        if fault == "stall":
            time.sleep(1)
        if fault == "other content":
            content = bytes(len(content))
        self._headers(len(content))
        if fault == "half":
            content = content[: len(content) // 2]
        step = -(-len(content) // 10) if fault == "slow" else len(content)
        for start in range(0, len(content), max(step, 1)):
            time.sleep(0.1 * (fault == "slow"))
            self.wfile.write(content[start : start + step])
            self.wfile.flush()

    def _headers(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The server, running in a thread until the block is left."""
    with Server(folder) as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        yield server
        server.shutdown()
        thread.join()
