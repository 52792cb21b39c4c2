"""What is read from each format, and what is said about a damaged one. Files are written by other programs."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from janus_pt.data import files
from janus_pt.data_prep.files import BadLine
from janus_pt.data_prep.pipeline.formats import Record, documents
from janus_pt.data_prep.pipeline.pair_formats import pairs
from janus_pt.data_prep.pipeline.schema import SourceConfig
from janus_pt.utils.errors import UserError

PAGE = "<html><body><p>Café au lait.</p></body></html>"


def source(form: str, **more: object) -> SourceConfig:
    return SourceConfig(name="s", path="unused", format=form, **more)  # type: ignore[arg-type]


def read(form: str, path: Path, **more: object) -> list[Record | BadLine]:
    return list(documents(source(form, **more), path, path.name))


def read_pairs(form: str, path: Path, **more: object) -> list[Record | BadLine]:
    return list(pairs(source(form, **more), (path,), (path.name,)))


def write_warc(path: Path, compressed: bool = True) -> None:
    with path.open("wb") as output:
        writer = WARCWriter(output, gzip=compressed)
        for number, (kind, content) in enumerate(
            [("text/html", PAGE), ("image/png", "no text"), ("text/html; charset=UTF-8", PAGE)]
        ):
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://example.org/{number}",
                "response",
                payload=io.BytesIO(content.encode()),
                http_headers=headers,
            )
            writer.write_record(record)


def test_documents_of_every_format_are_read_with_their_places(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl.gz"
    jsonl.write_bytes(gzip.compress(b'{"text": "one"}\n\n{"text": "two", "id": 7}\n'))
    assert read("jsonl", jsonl) == [Record(1, "one", {}), Record(3, "two", {})]
    text = tmp_path / "a.txt"
    text.write_text("one\nmore\n\n\ntwo\n")
    assert read("text", text) == [Record(1, "one\nmore", {}), Record(5, "two", {})]
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"body": ["one", None, "two"], "n": [1, 2, 3]}), table
    )
    rows = read("parquet", table, field="body")
    assert rows[0] == Record(1, "one", {}) and rows[2] == Record(3, "two", {})
    assert str(rows[1]) == 'a.parquet, line 2: field "body" is not a string but NoneType'
    for name in ("a.warc.gz", "a.warc"):
        write_warc(tmp_path / name, name.endswith("gz"))
        pages = read("warc", tmp_path / name)
        assert [(page.line, page.text) for page in pages] == [(1, PAGE), (3, PAGE)]
        assert pages[0].metadata == {"url": "http://example.org/0", "html": True}


def test_pairs_of_every_format_are_read_with_their_places(tmp_path: Path) -> None:
    expected = [Record(1, "Guten Tag", {"target": "Good day", "score": 0.5})]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text(json.dumps({"de": "Guten Tag", "en": "Good day", "laser": 0.5}))
    names = {"source_field": "de", "target_field": "en", "score_field": "laser"}
    assert read_pairs("jsonl", jsonl, **names) == expected
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"de": ["Guten Tag"], "en": ["Good day"], "laser": [0.5]}), table
    )
    assert read_pairs("parquet", table, **names) == expected
    tsv = tmp_path / "a.tsv"
    tsv.write_text("0.5\tGood day\tGuten Tag\nx\ty\n")
    columns = {"source_column": 2, "target_column": 1, "score_field": "0"}
    rows = read_pairs("tsv", tsv, **columns)
    assert rows[:1] == expected
    assert str(rows[1]) == "a.tsv, line 2: has 2 columns, and 3 are needed"
    tmx = tmp_path / "a.tmx"
    tmx.write_text(
        '<tmx version="1.4"><body><tu><tuv xml:lang="de-DE"><seg>Guten <bpt i="1"/>Tag</seg></tuv>'
        '<tuv xml:lang="EN"><seg>Good day</seg></tuv></tu>'
        '<tu><tuv xml:lang="en"><seg>alone</seg></tuv></tu></body></tmx>'
    )
    rows = read_pairs("tmx", tmx, source_field="de", target_field="en")
    assert rows[0] == Record(1, "Guten Tag", {"target": "Good day"})
    assert str(rows[1]) == "a.tmx, line 2: the unit has no segment in de (it has: en)"


def test_two_files_are_read_line_by_line(tmp_path: Path) -> None:
    left, right = tmp_path / "a.de", tmp_path / "a.en"
    left.write_text("eins\nzwei\n")
    right.write_text("one\n")
    rows = list(pairs(source("moses", target_path="x"), (left, right), ("a.de", "a.en")))
    assert rows[0] == Record(1, "eins", {"target": "one"})
    assert str(rows[1]) == "a.de, line 2: has no partner: a.en ends at line 1"


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("form", ["a.jsonl.gz", "a.parquet", "a.warc.gz", "a.warc", "a.tmx"])
def test_a_file_that_was_cut_short_is_never_a_shorter_one(
    form: str, keep: float, tmp_path: Path
) -> None:
    whole = tmp_path / form
    if "warc" in form:
        write_warc(whole, form.endswith("gz"))
    elif form == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one"] * 500}), whole)
    elif form == "a.tmx":
        whole.write_text("<tmx><body>" + "<tu><tuv lang='de'/></tu>" * 20 + "</body></tmx>")
    else:
        lines = b"".join(b'{"text": "line %d"}\n' % number for number in range(200))
        whole.write_bytes(gzip.compress(lines))
    content = whole.read_bytes()
    whole.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=rf"{form}: damaged or cut short after \w+ \d+"):
        if form == "a.tmx":
            read_pairs("tmx", whole, source_field="de", target_field="en")
        else:
            read(form.split(".")[1], whole)


@pytest.fixture
def busy_server(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A server that answers 503 twice, then sends half of a file, then the file."""
    answers = [503, 503, 206, 200]
    body = b'{"text": "from afar"}\n' * 100

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers[0] if len(answers) == 1 else answers.pop(0)
            self.send_response(503 if status == 503 else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write({503: b"", 206: body[:700], 200: body}[status])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.jsonl", answers
    server.shutdown()


def test_a_server_that_is_busy_for_a_while_is_asked_again(
    busy_server: tuple[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DELAYS", (0.01,) * 5)
    url, answers = busy_server
    path = files.fetch(url, tmp_path)
    assert answers == [200]
    assert path.name == "a.jsonl" and len(read("jsonl", path)) == 100
