"""Responses that are made piece by piece: bounded ahead of the client, whole or recognizably cut."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, Response

from runspan.backends.sqlite import SqliteStore
from runspan.codec.attributes import STEP_TEMPLATES
from runspan.model.document import Run
from runspan.model.span import run_ids
from runspan.otlp.json import json_pieces, read_spans, write_json
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import MIB
from runspan.web.limits import ServerLimits
from support.bad_clients import request as request_bytes
from support.web import document, error_of, raw, serving, spans_of

PIECE = bytes(MIB)


class Source:
    """The pieces of a response, which counts how many were made and whether it was closed."""

    def __init__(self, count: int, fails_at: int = -1) -> None:
        self.made = 0
        self.closed = threading.Event()
        self._count = count
        self._fails_at = fails_at

    def __iter__(self) -> Iterator[bytes]:
        try:
            for number in range(self._count):
                if number == self._fails_at:
                    raise RuntimeError("halfway")
                self.made += 1
                yield PIECE
        finally:
            self.closed.set()


def app_of(source: Source) -> Flask:
    app = Flask("streaming")
    app.add_url_rule("/", view_func=lambda: Response(iter(source), content_type="application/octet-stream"))
    app.add_url_rule("/other", "other", lambda: "other")
    return app


def connect(client: httpx.Client) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10)
    connection.sendall(request_bytes("GET /"))
    return connection


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def settled(source: Source) -> int:
    """Return how many pieces were made once no more of them are."""
    before = -1
    while before != source.made:
        before = source.made
        time.sleep(0.3)
    return before


def test_a_client_that_reads_slowly_has_little_made_ahead() -> None:
    """The rest is made as the client reads on, and arrives whole; meanwhile other requests need none of its thread."""
    source = Source(100)
    with serving(app_of(source), limits=ServerLimits(concurrency=1)) as client, connect(client) as connection:
        assert eventually(lambda: source.made > 0)
        assert settled(source) < 20
        assert client.get("/other").text == "other"
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += connection.recv(MIB)
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert body.count(PIECE) == 100
        connection.sendall(request_bytes("GET /other"))
        assert b"other" in connection.recv(MIB)  # the connection is kept
    assert source.closed.is_set()


def test_what_is_made_is_sent_while_the_rest_is_made() -> None:
    """The first byte does not wait for megabytes, which a compressed response takes long to have."""
    received = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield PIECE[: 64 << 10]
        assert received.wait(10)
        yield b"end"

    app = Flask("streaming")
    app.add_url_rule("/", view_func=lambda: Response(pieces(), content_type="application/octet-stream"))
    with serving(app) as client, client.stream("GET", "/", timeout=5) as response:
        chunks = response.iter_raw()
        assert next(chunks)
        received.set()
        assert b"".join(chunks).endswith(b"end")


def test_a_client_that_leaves_ends_the_making() -> None:
    """The application is told to release what the response is made from."""
    source = Source(100)
    with serving(app_of(source)) as client:
        with connect(client):
            assert eventually(lambda: source.made > 0)
            settled(source)
            assert not source.closed.is_set()
        assert source.closed.wait(10)
        assert source.made < 100


def test_a_client_that_stops_reading_is_closed() -> None:
    """The times of slow clients hold in the middle of a response."""
    source = Source(100)
    limits = ServerLimits(slow_time=0.5, min_rate=64 * MIB)
    with serving(app_of(source), limits=limits) as client, connect(client):
        assert source.closed.wait(10)
        assert source.made < 100


def test_a_server_that_stops_releases_what_waits() -> None:
    """A paused response does not outlive the server."""
    source = Source(100)
    with serving(app_of(source)) as client, connect(client):
        assert eventually(lambda: source.made > 0)
        settled(source)
    assert source.closed.is_set()


def test_an_error_halfway_cuts_the_response(caplog: pytest.LogCaptureFixture) -> None:
    """The client does not take the part for the whole."""
    source = Source(10, fails_at=5)
    with serving(app_of(source)) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/")
    assert "halfway" in caplog.text


# GET /api/v1/traces/{id}


def large(steps: int) -> dict[str, Any]:
    step = {"type": "task", "status": "completed", "output": {"text": "x" * 200}}
    return document("large", steps=[{"id": f"step {number}", **step} for number in range(steps)])


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with SqliteStore(tmp_path) as store, serving(create_app(store, store)) as client:
        store.put(Run.from_dict(large(3000)), observed_at=time.time_ns())
        yield client


def path_of(run_id: str) -> str:
    return f"/api/v1/traces/{run_ids(run_id).trace_id.hex()}"


def test_a_large_trace_is_streamed_whole(client: httpx.Client) -> None:
    """The response has no length, and its spans are those of the document."""
    response = client.get(path_of("large"))
    assert response.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in response.headers
    spans = read_spans(response.content)
    assert {span.span_id for span in spans} == {span.span_id for span in spans_of(large(3000))}
    assert len(spans) == 3001


def test_head_of_a_large_trace_has_no_content(client: httpx.Client) -> None:
    """The next response on the connection is read as such."""
    head = request_bytes(f"HEAD {path_of('large')}")
    response = raw(client, head + request_bytes("GET /healthz", "Connection: close"))
    assert response.status_code == 200
    assert response.content.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_missing_trace_is_an_error_as_ever(client: httpx.Client) -> None:
    """The status is that of the first span."""
    error_of(client.get(path_of("none")), 404, "NOT_FOUND")


def test_a_large_trace_of_another_tenant_is_not_found(tmp_path: Path) -> None:
    """Only the owner reads it."""
    keys = ApiKeyStore(tmp_path / "keys.sqlite3")
    owner, other = (keys.create("x", tenant=tenant)[0] for tenant in ("acme", "beta"))
    with SqliteStore(tmp_path) as store, serving(create_app(store, store, keys=keys)) as client:
        store.put(Run.from_dict(large(1000)), tenant="acme", observed_at=time.time_ns())
        path = f"/api/v1/traces/{run_ids('large', 'acme').trace_id.hex()}"
        assert len(read_spans(client.get(path, headers={"x-api-key": owner}).content)) == 1001
        error_of(client.get(path, headers={"x-api-key": other}), 404, "NOT_FOUND")
    keys.close()


def test_a_response_that_waits_keeps_its_place_until_its_client_leaves(tmp_path: Path) -> None:
    """A tenant's slow readers take its own places only, and leave them."""
    limits = ServerLimits(concurrency=1, queue_time=0.3)
    with SqliteStore(tmp_path) as store, serving(create_app(store, store), limits=limits) as client:
        store.put(Run.from_dict(large(20_000)), observed_at=time.time_ns())
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
            connection.sendall(request_bytes(f"GET {path_of('large')}"))
            assert connection.recv(12) == b"HTTP/1.1 200"
            time.sleep(1)
            error_of(client.get("/api/v1/runs"), 503, "SERVER_BUSY")
        assert eventually(lambda: client.get("/api/v1/runs").status_code == 200)
        assert len(read_spans(client.get(path_of("large")).content)) == 20_001


def test_pieces_are_bounded_and_have_the_spans_in_order() -> None:
    """Each piece is some 64 KiB however long the trace, and they are one JSON text."""
    spans = spans_of(large(2000))
    pieces = list(json_pieces(spans))
    assert max(map(len, pieces)) < 80 << 10
    assert [span.span_id for span in read_spans(b"".join(pieces))] == [span.span_id for span in spans]
    assert json.loads(write_json(spans)) == json.loads(b"".join(pieces))
    assert list(json_pieces([])) == [b'{"resourceSpans":[{"scopeSpans":[]}]}']


def test_the_first_span_does_not_wait_for_the_labels_of_all_steps(tmp_path: Path) -> None:
    """What a step shows is made when its span is, so the response of a long run begins soon."""
    with SqliteStore(tmp_path) as store:
        store.put(Run.from_dict(large(1000)), observed_at=time.time_ns())
        STEP_TEMPLATES.clear()
        spans = store.iter_spans(run_ids("large").trace_id)
        next(spans)
        assert len(STEP_TEMPLATES) == 1
        assert len(list(spans)) == 1000
