#!/usr/bin/env bash
# fsspec reports each failure of an HTTP server as FileNotFoundError when a file is opened, and `exists` says
# False: a server that is overloaded or asks for a password seems to lack the file.
. "$(dirname "$0")/common.sh"
finding fsspec==2026.9.0 aiohttp==3.14.5 <<'PYTHON'
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec


class Failing(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
threading.Thread(target=server.serve_forever, daemon=True).start()
http = fsspec.filesystem("http")
for status in (404, 401, 429, 503):
    url = f"http://127.0.0.1:{server.server_port}/{status}"
    raised = None
    try:
        http.open(url)
    except Exception as error:
        raised, cause = type(error), error.__cause__
    print(f"{status}: open {raised.__name__}, cause {cause.status}; exists {http.exists(url)}")
    assert raised is FileNotFoundError
    assert cause.status == status
    assert http.exists(url) is False
PYTHON
