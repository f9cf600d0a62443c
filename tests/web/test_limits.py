"""The bounds of the server: which requests it reads, how many it handles at once, and what it says to the others."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, Response, request
from google.rpc.status_pb2 import Status

from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Page
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import MIB, WebConfig
from runspan.web.limits import ServerLimits
from support.bad_clients import request as request_bytes
from support.cli import runspan, server
from support.web import JSON, PROTOBUF, document, error_of, otlp, raw, serving

LARGE = 300_000


class Site:
    """A server with a key of each of two tenants, and of one that only reads."""

    def __init__(self, client: httpx.Client, keys: ApiKeyStore) -> None:
        self.client = client
        self.keys = {tenant: keys.create("x", tenant=tenant)[0] for tenant in ("acme", "beta")}
        self.keys["reader"] = keys.create("x", tenant="acme", permissions=["runs:read"])[0]

    def head(self, line: str, *headers: str, tenant: str = "", length: int = LARGE) -> bytes:
        """Return the headers of a request with a large body."""
        key = [f"x-api-key: {self.keys[tenant]}"] if tenant else []
        return request_bytes(line, *headers, *key, *([f"Content-Length: {length}"] if length else []))

    def connect(self) -> socket.socket:
        return socket.create_connection((self.client.base_url.host, self.client.base_url.port or 80), timeout=10)


@contextmanager
def site_of(directory: Path, limits: ServerLimits, config: WebConfig) -> Iterator[Site]:
    keys = ApiKeyStore(directory / "keys.sqlite3")
    with SqliteStore(directory) as store:
        app = create_app(store, store, keys=keys, config=config)
        with serving(app, limits=limits, max_body=config.max_body) as client:
            yield Site(client, keys)
    keys.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    limits = ServerLimits(bodies=2 * MIB, slow_time=0.5, header_time=0.5, idle_time=1.0)
    with site_of(tmp_path, limits, WebConfig(max_body=MIB, writes_per_minute=5)) as site:
        yield site


POST = "POST /api/v1/runs"
OTLP = "POST /v1/traces"
JSON_TYPE = "Content-Type: application/json"
PROTOBUF_TYPE = "Content-Type: application/x-protobuf"


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
@pytest.mark.parametrize(
    ("line", "kind", "tenant", "length", "status", "code"),
    [
        (POST, JSON_TYPE, "", LARGE, 401, "UNAUTHORIZED"),
        (POST, JSON_TYPE, "reader", LARGE, 403, "FORBIDDEN"),
        (POST, JSON_TYPE, "acme", 2 * MIB, 413, "PAYLOAD_TOO_LARGE"),
        (POST, "Content-Type: text/plain", "acme", LARGE, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST /nowhere", JSON_TYPE, "acme", LARGE, 404, "NOT_FOUND"),
        ("DELETE /api/v1/runs", JSON_TYPE, "acme", LARGE, 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_a_request_is_refused_before_its_body_arrives(
    site: Site, line: str, kind: str, tenant: str, length: int, status: int, code: str, expect: tuple[str, ...]
) -> None:
    """The response comes after the headers, in the form of the application, and the connection ends with it."""
    response = raw(site.client, site.head(line, kind, *expect, tenant=tenant, length=length))
    error_of(response, status, code)
    assert response.headers["connection"] == "close"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("tenant", "length", "status", "code"), [("", LARGE, 401, 16), ("reader", LARGE, 403, 7), ("acme", 2 * MIB, 413, 8)]
)
def test_otlp_is_refused_before_its_body_arrives_as_a_status(
    site: Site, tenant: str, length: int, status: int, code: int
) -> None:
    """Exporters read google.rpc.Status."""
    response = raw(site.client, site.head(OTLP, PROTOBUF_TYPE, tenant=tenant, length=length))
    assert response.status_code == status
    assert Status.FromString(response.content).code == code


def test_a_client_that_sends_on_reads_the_refusal(site: Site) -> None:
    """What it sends after the refusal is discarded, so that its system does not discard the response."""
    error_of(site.client.post("/api/v1/runs", content=bytes(20 * MIB), headers=JSON), 401, "UNAUTHORIZED")


def test_a_large_body_is_read_once_it_is_admitted(site: Site) -> None:
    """The request counts once towards the rate limit, although its headers are handled before its body."""
    headers = JSON | {"x-api-key": site.keys["acme"]}
    for count in range(5):
        text = json.dumps(document(f"run_{count}", output="x" * LARGE))
        assert site.client.post("/api/v1/runs", content=text, headers=headers).status_code == 201
    refused = site.client.post("/api/v1/runs", content="x" * LARGE, headers=headers)
    error_of(refused, 429, "RATE_LIMITED")
    assert int(refused.headers["retry-after"]) > 0
    data = otlp(document("run_otlp", output="y" * LARGE), tenant="acme")
    sent = site.client.post("/v1/traces", content=data, headers=PROTOBUF | {"x-api-key": site.keys["acme"]})
    assert sent.status_code == 200
    run = site.client.get("/api/v1/runs/run_otlp", headers=headers).json()["data"]
    assert run["output"] == "y" * LARGE


def test_expect_continue_is_answered_once_the_body_is_admitted(site: Site) -> None:
    """The client hears 100 before it sends a body of any size."""
    body = json.dumps(document("run_1")).encode()
    with site.connect() as connection:
        connection.sendall(site.head(POST, JSON_TYPE, "Expect: 100-continue", tenant="acme", length=len(body)))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 201 ")
        connection.sendall(request_bytes("GET /healthz", "Connection: close"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_is_admitted_and_bounded(site: Site) -> None:
    """Without a length, it is refused when it exceeds the limit."""
    headers = JSON | {"x-api-key": site.keys["acme"]}
    text = json.dumps(document("run_1", output="x" * LARGE)).encode()
    assert site.client.post("/api/v1/runs", content=iter([text[:9], text[9:]]), headers=headers).status_code == 201
    refused = site.client.post("/api/v1/runs", content=iter([bytes(MIB), bytes(MIB)]), headers=headers)
    error_of(refused, 413, "PAYLOAD_TOO_LARGE")
    error_of(site.client.post("/api/v1/runs", content=iter([bytes(MIB)] * 9), headers=JSON), 401, "UNAUTHORIZED")


@pytest.mark.parametrize("garbage", [b"1;" + b"x" * 9000, b"0\r\n" + b"X: y\r\n" * 2000])
def test_what_is_between_chunks_is_bounded(site: Site, garbage: bytes) -> None:
    """A line that does not end, and trailers."""
    head = site.head(POST, JSON_TYPE, "Transfer-Encoding: chunked", tenant="acme", length=0)
    message = error_of(raw(site.client, head + garbage), 400, "VALIDATION_ERROR")["message"]
    assert "too long" in message


def test_the_bodies_of_a_tenant_are_bounded(site: Site) -> None:
    """One more is refused with 503, which exporters retry; those of another tenant are read."""
    with site.connect() as first:
        first.sendall(site.head(OTLP, PROTOBUF_TYPE, tenant="acme", length=MIB) + bytes(1000))
        deadline = time.monotonic() + 5
        while True:
            response = raw(site.client, site.head(OTLP, PROTOBUF_TYPE, tenant="acme"))
            if response.status_code != 503:  # the first one is not admitted yet
                assert time.monotonic() < deadline
                continue
            break
        assert Status.FromString(response.content).code == 14
        assert int(response.headers["retry-after"]) > 0
        error_of(raw(site.client, site.head(POST, JSON_TYPE, tenant="acme")), 503, "SERVER_BUSY")
        text = json.dumps(document("run_1", output="x" * LARGE))
        headers = JSON | {"x-api-key": site.keys["beta"]}
        assert site.client.post("/api/v1/runs", content=text, headers=headers).status_code == 201
    headers["x-api-key"] = site.keys["acme"]
    while (response := site.client.post("/api/v1/runs", content=text, headers=headers)).status_code == 503:
        assert time.monotonic() < deadline, "the body of a closed connection still counts"
    assert response.status_code == 201


def test_bodies_without_a_key_are_not_stored(tmp_path: Path) -> None:
    """Six uploads of 120 MB leave nothing on the disk."""
    runspan("keys", "create", "--data", tmp_path / "data", "--name", "x")
    spool = tmp_path / "spool"
    spool.mkdir()
    statuses: list[bytes] = []

    def upload(port: int) -> None:
        head = request_bytes(OTLP, PROTOBUF_TYPE, "Content-Length: 60000000")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head)
            try:
                for _ in range(60):
                    connection.sendall(bytes(1_000_000))
            except OSError:
                pass
            statuses.append(connection.recv(12))

    with server(tmp_path / "data", TMPDIR=str(spool)) as (url, child):
        port = httpx.URL(url).port or 80
        threads = [threading.Thread(target=upload, args=(port,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, _spooled(child.process.pid, spool))
        assert most == 0
        assert statuses == [b"HTTP/1.1 401"] * 6


def _spooled(pid: int, folder: Path) -> int:
    """Return the bytes of the deleted files of a folder that a process has open."""
    total = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            total += file.stat().st_size if os.readlink(file).startswith(str(folder)) else 0
        except OSError:
            continue
    return total


@pytest.mark.parametrize(
    ("part", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nX: ", 408, "REQUEST_TIMEOUT"),
        (request_bytes(POST, JSON_TYPE, "Content-Length: 10", body=b"{"), 401, "UNAUTHORIZED"),
    ],
)
def test_what_does_not_arrive_in_time_is_refused(site: Site, part: bytes, status: int, code: str) -> None:
    """In the form of the application where it is known what is asked for."""
    began = time.monotonic()
    error_of(raw(site.client, part), status, code)
    assert 0.4 < time.monotonic() - began < 10


def test_a_body_that_does_not_arrive_in_time_is_refused(site: Site) -> None:
    """Small and large ones; over OTLP with a status that exporters retry."""
    for length in (10, LARGE):
        head = site.head(POST, JSON_TYPE, tenant="acme", length=length)
        message = error_of(raw(site.client, head + b"{"), 408, "REQUEST_TIMEOUT")["message"]
        assert "16384 bytes a second" in message
        head = site.head(OTLP, PROTOBUF_TYPE, tenant="acme", length=length)
        assert Status.FromString(raw(site.client, head + b"{").content).code == 14


def test_an_idle_connection_is_closed(site: Site) -> None:
    """Before a request, and after one."""
    for first in (b"", request_bytes("GET /healthz")):
        with site.connect() as connection:
            connection.sendall(first)
            began = time.monotonic()
            assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 200" if first else b"")
            assert 0.5 < time.monotonic() - began < 10


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    """One after the other, with bodies between them."""
    key = f"x-api-key: {site.keys['acme']}"
    body = json.dumps(document("run_1")).encode()
    post = request_bytes(POST, JSON_TYPE, key, f"Content-Length: {len(body)}", body=body)
    get = request_bytes("GET /api/v1/runs/run_1", key)
    last = request_bytes("GET /healthz", "Connection: close")
    with site.connect() as connection:
        connection.sendall(post + get * 20 + last)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b"HTTP/1.1 ") == 22
    assert received.count(b'"id":"run_1","workflowId"') == 20
    assert received.endswith(b'{"status":"ok"}\n')


def test_an_address_in_x_forwarded_for_is_validated() -> None:
    """Only the last entry counts, and only if it is an address; a port is left out."""
    app = Flask("address")
    app.add_url_rule("/", view_func=lambda: Response(request.remote_addr))
    with serving(app, trusted_proxy="127.0.0.1") as client:
        for header, address in {
            "203.0.113.9": "203.0.113.9",
            "x, 198.51.100.1, 203.0.113.9:1234": "203.0.113.9",
            "[2001:DB8::1]:80": "2001:db8::1",
            "2001:db8:0::2": "2001:db8::2",
            "unknown": "127.0.0.1",
            "9" * 5000: "127.0.0.1",
            "203.0.113.9,": "127.0.0.1",
            "203.0.113.9 1": "127.0.0.1",
        }.items():
            assert client.get("/", headers={"X-Forwarded-For": header}).text == address


class SlowStore(SqliteStore):
    """A store whose lists wait."""

    released: threading.Event

    def search(self, query: Any) -> Page:
        assert self.released.wait(60)
        return super().search(query)


def test_a_tenant_does_not_take_all_threads(tmp_path: Path) -> None:
    """While its requests wait, those of another tenant, health checks and pages are answered; the rest get 503."""
    keys = ApiKeyStore(tmp_path / "keys.sqlite3")
    limits = ServerLimits(concurrency=8, queue_time=3.0)
    with SlowStore(tmp_path) as store, ExitStack() as stack:
        store.released = threading.Event()
        app = create_app(store, store, keys=keys, config=WebConfig(writes_per_minute=0))
        site = Site(stack.enter_context(serving(app, limits=limits)), keys)
        statuses: list[tuple[int, float]] = []

        def fetch() -> None:
            began = time.monotonic()
            response = site.client.get("/api/v1/runs", headers={"x-api-key": site.keys["acme"]})
            statuses.append((response.status_code, time.monotonic() - began))
            if response.status_code == 503:
                error_of(response, 503, "SERVER_BUSY")
                assert int(response.headers["retry-after"]) > 0

        threads = [threading.Thread(target=fetch) for _ in range(30)]
        stack.callback(store.released.set)
        for thread in threads:
            thread.start()
        beta = {"x-api-key": site.keys["beta"]}
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            began = time.monotonic()
            assert site.client.get("/healthz").status_code == 200
            assert site.client.get("/metrics").status_code == 200
            assert site.client.get("/readyz", headers=beta).status_code == 200
            sent = site.client.post("/api/v1/runs", json=document(), headers=beta)
            assert sent.status_code in (200, 201)
            assert time.monotonic() - began < 4
        assert [status for status, _ in statuses] == [503] * 26
        assert all(2.9 < seconds < 10 for _, seconds in statuses)
        began = time.monotonic()
        fetch()
        assert time.monotonic() - began < 2.5, "nothing to wait for: all of its requests are stuck"
        store.released.set()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in statuses) == [200] * 4 + [503] * 27
        assert site.client.get("/api/v1/runs", headers=beta).status_code == 200
    keys.close()
