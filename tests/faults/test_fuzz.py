"""Damaged requests to a server, and damaged answers of a platform, a Tempo and a Jaeger: an error, and never more.

A case is a valid body with a few random changes, all drawn from one seed. A server answers each in time and without
failing; a client raises an error of runspan's tree, or returns what can be read of it.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import httpx
import pytest
import zstandard

from runspan import Run, connect, encode
from runspan.backends.runspan_api import RunspanApiReader
from runspan.contracts import RunQuery
from runspan.errors import RunspanError
from runspan.model.span import run_ids
from runspan.otlp.json import write_json
from runspan.testing import generate
from support.cli import server
from support.web import JSON, PROTOBUF, document, otlp, spans_of

SEED = 20261128
SECONDS = 2.0
"""No answer may take longer."""
MEMORY = 500 << 20
"""Bytes that the server may hold."""

DOCUMENTS = [json.dumps(document("run_1")).encode(), *generate(20, seed=SEED, unfinished=True)]
NUMBERS = (b"0", b"-1", b"1e999", b"9" * 400, b"1.5", b"true", b"null", b"NaN")


def damaged(random: Random, body: bytes) -> bytes:
    """Return the body with one to four changes."""
    found = bytearray(body)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((1, 2, 8, 64, 1024)))
        match random.randrange(8):
            case 0 if at < len(found):
                found[at] ^= 1 << random.randrange(8)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end] * random.choice((1, 2, 50))
            case 3:
                found[at:at] = random.randbytes(random.choice((1, 4, 16)))
            case 4:
                del found[at:]
            case 5:
                depth = random.choice((50, 1100, 20_000))
                found[at:at] = random.choice((b"[", b'{"a":', b"\x0a\xff\xff\xff\xff\x0f")) * depth
            case 6:
                found[at:end] = random.choice(NUMBERS)
            case _:
                found[at:end] = b'\\ud800"\xed\xa0\x80\x00'[: random.randint(1, 12)]
    return bytes(found)


def resident(pid: int) -> int:
    """Return the bytes of memory of a process, 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) << 10 if found else 0


def requests(random: Random) -> Iterator[tuple[str, dict[str, str], bytes]]:
    """Yield path, headers and body of damaged requests: documents, protobuf and JSON, compressed or not."""
    protobuf = [otlp(document("run_1")), otlp(*map(json.loads, DOCUMENTS[:4]))]
    as_json = [write_json(spans_of(document("run_1")))]
    pack: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("", bytes),
        ("gzip", lambda body: gzip.compress(body, 1)),
        ("deflate", zlib.compress),
        ("zstd", zstandard.ZstdCompressor(level=1).compress),
    ]
    while True:
        path, headers, bodies = random.choice(
            [("/api/v1/runs", JSON, DOCUMENTS), ("/v1/traces", PROTOBUF, protobuf), ("/v1/traces", JSON, as_json)]
        )
        encoding, compress = random.choice(pack)
        body = random.choice(bodies)
        # Either the content is damaged, or what carries it.
        body = compress(damaged(random, body)) if random.random() < 0.6 else damaged(random, compress(body))
        yield path, headers | ({"Content-Encoding": encoding} if encoding else {}), body


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [200, pytest.param(100_000, marks=pytest.mark.campaign)])
def test_damaged_requests(tmp_path: Path, count: int) -> None:
    """No request makes the server fail, takes long, or leaves memory behind."""
    cases = requests(Random(SEED))
    with server(tmp_path) as (url, child):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            for number in range(count):
                path, headers, body = next(cases)
                began = time.monotonic()
                response = client.post(path, headers=headers, content=body)
                seconds = time.monotonic() - began
                case = (
                    f"case {number}: {path} {headers} {body[:200]!r}: {response.status_code} {response.content[:300]!r}"
                )
                assert response.status_code in (200, 201, 400, 413, 415), case
                assert seconds < SECONDS, f"{seconds:.1f} s, {case}"
                if number % 1000 == 0:
                    assert resident(child.process.pid) < MEMORY, case
            assert client.get("/readyz").status_code == 200
            assert resident(child.process.pid) < MEMORY
        assert child.end() == 0
        assert "Traceback" not in "".join(child.lines)


@contextmanager
def answering(answer: Callable[[str], bytes]) -> Iterator[str]:
    """A server whose answer to each GET is made from its path and query; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            body = answer(self.path)
            self.send_response_only(400 if "trace-summaries" in self.path else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


RUN = Run.from_dict(document("run_1"))
SPANS = encode(RUN)
TRACE_ID = run_ids("run_1", "").trace_id.hex()
LISTED = b'{"success":true,"data":[' + RUN.summary() + b'],"meta":{"cursor":null,"hasMore":false}}'


def found_by_tempo() -> bytes:
    """Return a search result of Tempo with the run span of ``run_1``."""
    (span,) = json.loads(write_json(SPANS[-1:]))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
    found = {"spanID": span["spanId"], "startTimeUnixNano": str(start), "durationNanos": str(end - start)}
    found |= {"name": span["name"], "attributes": span["attributes"]}
    trace = {"traceID": TRACE_ID, "startTimeUnixNano": str(start), "spanSets": [{"spans": [found], "matched": 1}]}
    return json.dumps({"traces": [trace], "metrics": {"completedJobs": 1, "totalJobs": 1}}).encode()


def answers(backend: str, path: str) -> bytes:
    """Return the valid answer of a backend to a request."""
    path = path.partition("?")[0]
    if backend == "tempo":
        trace = otlp(document("run_1"))
        size = len(trace)
        length = bytes([size & 0x7F | 0x80, size >> 7]) if size > 127 else bytes([size])
        return {"/ready": b"ready", "/api/search": found_by_tempo()}.get(path, b"\x0a" + length + trace)
    if backend == "jaeger":
        if path.endswith("/trace-summaries"):
            return b'{"error":{"message":"missing query.start_time_min"}}'
        traces = b'{"result":' + write_json(SPANS) + b"}"
        return b'{"services":["workflows"]}' if path.endswith("/services") else traces
    if path == "/api/v1/runs":
        return LISTED
    return b'{"success":true,"data":' + RUN.text + b"}"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [50, pytest.param(5000, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("backend", ["tempo", "jaeger", "runspan"])
def test_damaged_answers(backend: str, count: int) -> None:
    """A reader returns the run as it was sent, an older or incomplete answer with its reason, or one of our errors."""
    random = Random(SEED)
    share = 0.0

    def answer(path: str) -> bytes:
        valid = answers(backend, path)
        return damaged(random, valid) if random.random() < share else valid

    with answering(answer) as url:
        reader = RunspanApiReader(url) if backend == "runspan" else connect(f"{backend}+{url}")
        assert reader.document("run_1").text == RUN.text
        assert len(reader.search(RunQuery(limit=5)).items) == 1
        share = 0.7
        for number in range(count):
            began = time.monotonic()
            try:
                found = reader.document("run_1")
                assert backend == "runspan" or found.text == RUN.text, number
            except RunspanError:
                pass
            try:
                page = reader.search(RunQuery(limit=5))
                assert backend == "runspan" or page.items in ([], [RUN.summary()]), number
            except RunspanError:
                pass
            assert time.monotonic() - began < 2 * SECONDS, number
        reader.close()
