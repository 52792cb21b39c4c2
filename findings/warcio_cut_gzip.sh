#!/usr/bin/env bash
# A .warc.gz that was cut short is a shorter one for warcio: records behind the cut are missing, the last one may be
# cut, and nothing is raised.
. "$(dirname "$0")/common.sh"
finding warcio==1.8.1 <<'PYTHON'
import io
import random

from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

rng = random.Random(1)
pages = ["".join(rng.choices("abcdefghij ", k=4000)) for _ in range(10)]
whole = io.BytesIO()
writer = WARCWriter(whole, gzip=True)
for number, page in enumerate(pages):
    headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
    url = f"http://example.org/{number}"
    payload = io.BytesIO(page.encode())
    writer.write_record(
        writer.create_warc_record(url, "response", payload=payload, http_headers=headers)
    )
content = whole.getvalue()
read = []
for record in ArchiveIterator(io.BytesIO(content[: len(content) * 55 // 100])):
    read.append(len(record.content_stream().read()))
print(f"{len(pages)} pages of {len(pages[0])} bytes; of the file's first 55 % these sizes are read:")
print(*read)
assert len(read) < len(pages) and read[-1] < len(pages[0])
PYTHON
