"""What the Jaeger tests share: runs sent by the project's own export, readers, proxies and servers in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from runspan import Run
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import RemoteConfig
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import RunQuery
from runspan.delivery import connect, exporter_config
from runspan.export import export
from runspan.otlp.protobuf_writer import Resource
from support.servers.jaeger import Jaeger

NOW = 1_768_467_700_000_000_000

Response = tuple[int, str, bytes]
"""Status, content type, body."""


def send(server: Jaeger, runs: Sequence[Run], tenant: str, observed_at: int = NOW, service: str = "runspan") -> None:
    """Send the runs by the project's own export; all must be accepted."""
    with connect(exporter_config({}, endpoint=server.otlp)) as delivery:
        report = export(
            runs, delivery, tenant=tenant, observed_at=lambda: observed_at, resource=Resource(service_name=service)
        )
    assert report.complete, report.summary_lines()
    assert report.runs_accepted == len(runs)


@contextmanager
def reader_of(
    url: str, *, timeout: float = 15.0, services: Sequence[str] | None = ("runspan",)
) -> Iterator[JaegerReader]:
    """Yield a reader of a query API."""
    reader = JaegerReader(RemoteConfig("jaeger", url, timeout=timeout), services=services)
    try:
        yield reader
    finally:
        reader.close()


def items_of_all_pages(reader: JaegerReader | SqliteStore, query: RunQuery) -> list[bytes]:
    """Return the items of all pages."""
    items: list[bytes] = []
    while True:
        page = reader.search(query)
        assert page.partial == ()
        assert len(page.items) <= query.limit
        items += page.items
        if page.cursor is None:
            return items
        query = replace(query, cursor=page.cursor)


@contextmanager
def serving(respond: Callable[[str], Response]) -> Iterator[str]:
    """Serve every GET on loopback with what ``respond`` returns for its path; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = respond(self.path)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def proxy(server: Jaeger, paths: list[str], *, is_legacy: Callable[[], bool]) -> Iterator[str]:
    """Proxy a Jaeger with one search API: the legacy API, without trace summaries; or API v3 with them.

    paths: the requested paths are appended to it.
    """
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:

        def respond(path: str) -> Response:
            paths.append(path)
            if path.startswith("/api/v3/trace-summaries" if is_legacy() else "/api/traces"):
                return 404, "text/plain", b"404 page not found\n"
            response = client.get(path)
            return response.status_code, response.headers.get("content-type", ""), response.content

        with serving(respond) as url:
            yield url
