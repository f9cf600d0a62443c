"""Helpers of the web tests: a real server, run documents, and requests."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flask import Flask

from runspan import Run, encode
from runspan.model.span import Span
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.web.limits import ServerLimits
from runspan.web.server import WebServer

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}


@contextmanager
def serving(
    app: Flask, *, max_body: int = 0, limits: ServerLimits | None = None, trusted_proxy: str = ""
) -> Iterator[httpx.Client]:
    """Serve the application on a free port until the block ends, and yield a client of it."""
    server = WebServer(app, limits=limits, max_body=max_body, trusted_proxy=trusted_proxy)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def raw(client: httpx.Client, request: bytes) -> httpx.Response:
    """Send bytes that no client library would send, and return the response. The server must close the connection."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    header, _, body = received.partition(b"\r\n\r\n")
    status, *lines = header.split(b"\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def listed(client: httpx.Client) -> list[str]:
    """Return the ids of all pages, in their order."""
    ids: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/api/v1/runs", params={"limit": "200", **cursor}).json()
        ids += [run["id"] for run in page["data"]]
        if not page["meta"]["hasMore"]:
            return ids
        cursor = {"cursor": page["meta"]["cursor"]}


def document(run_id: str = "run_1", **members: Any) -> dict[str, Any]:
    """Return a completed run of two steps."""
    return {
        "id": run_id,
        "workflowId": "wf_1",
        "status": "completed",
        "startedAt": "2024-01-15T09:00:01.000Z",
        "completedAt": "2024-01-15T09:00:04.500Z",
        "durationMs": 3500,
        "steps": [
            {"id": "fetch", "name": "Fetch", "type": "action", "status": "completed", "output": {"n": 12}},
            {"id": "send", "name": "Send", "type": "email", "status": "skipped"},
        ],
    } | members


def spans_of(*documents: dict[str, Any], tenant: str = "") -> list[Span]:
    return [span for item in documents for span in encode(Run.from_dict(item), tenant=tenant)]


def otlp(*documents: dict[str, Any], tenant: str = "") -> bytes:
    """Return the documents as one ExportTraceServiceRequest."""
    return request_bytes(Resource(), [scoped_bytes(span) for span in spans_of(*documents, tenant=tenant)])


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the error of a response, which must have this status and code, and the documented body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = json.loads(response.content)
    assert set(body) == {"success", "error"}
    assert body["success"] is False
    error: dict[str, Any] = body["error"]
    assert set(error) <= {"code", "message", "details"}
    assert error["code"] == code
    assert error["message"]
    return error
