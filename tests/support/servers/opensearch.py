"""OpenSearch for tests, with its own limits, and how to start it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx

from support.servers import jaeger
from support.servers.finding import Place, container_engine, missing, require
from support.servers.jaeger import Jaeger, start_jaeger
from support.servers.process import Failed, Program, answers, free_ports

FIRST_DAY: Final = date(2024, 1, 1)
"""Before the runs of most tests."""
IMAGE: Final = "opensearchproject/opensearch:2.19.6"
_SETTINGS: Final = {"discovery.type": "single-node", "cluster.routing.allocation.disk.threshold_enabled": "false"}
_MEMORY: Final = "-Xms512m -Xmx512m"
_START_SECONDS: Final = 300.0
"""A Java program on a busy machine."""


@dataclass
class OpenSearch:
    """An OpenSearch that answers. how: where it comes from."""

    url: str
    how: str
    program: Program | None = None
    container: Any = None

    def spans(self, prefix: str, trace_ids: list[str]) -> list[dict[str, Any]]:
        """Return the documents of the spans that a Jaeger with this index prefix can read by now."""
        query = {"query": {"terms": {"traceID": trace_ids}}, "size": 10_000}
        response = httpx.post(
            f"{self.url}/{prefix}-jaeger-span-*/_search",
            json=query,
            params=_MISSING_IS_EMPTY,
            timeout=30,
            trust_env=False,
        )
        if response.status_code == 503:  # a new index is not ready
            return []
        response.raise_for_status()
        return [hit["_source"] for hit in response.json()["hits"]["hits"]]

    def put(self, path: str, content: Any) -> None:
        """Change a setting, a template or an index."""
        httpx.put(f"{self.url}/{path}", json=content, timeout=60, trust_env=False).raise_for_status()

    def post(self, path: str, content: Any) -> None:
        """Have something done, such as a rollover."""
        httpx.post(f"{self.url}/{path}", json=content, timeout=60, trust_env=False).raise_for_status()

    def delete(self, path: str) -> None:
        """Delete a template or an index."""
        httpx.delete(f"{self.url}/{path}", timeout=60, trust_env=False).raise_for_status()

    def stop(self) -> None:
        """Ends the server when a test started it; at once, since nobody reads its data again."""
        if self.program is not None:
            self.program.kill()
        if self.container is not None:
            self.container.remove(force=True)


_MISSING_IS_EMPTY: Final = {"ignore_unavailable": "true", "allow_no_indices": "true"}


def days_since(day: date) -> int:
    """Return the days from then to now."""
    return (datetime.now(UTC).date() - day).days


@dataclass
class JaegerOnOpenSearch:
    """A Jaeger whose indices have a prefix of their own. url, otlp: as those of ``Jaeger``."""

    jaeger: Jaeger
    opensearch: OpenSearch
    prefix: str

    @property
    def url(self) -> str:
        return self.jaeger.url

    @property
    def otlp(self) -> str:
        return self.jaeger.otlp

    def spans(self, trace_ids: list[str]) -> list[dict[str, Any]]:
        """Return the documents of all spans of these traces that can be found by now."""
        return self.opensearch.spans(self.prefix, trace_ids)


@contextmanager
def jaeger_on(
    opensearch: OpenSearch, directory: Path, *, prefix: str = "", **settings: Any
) -> Iterator[JaegerOnOpenSearch]:
    """Yield a Jaeger with its traces in this OpenSearch. prefix: of its indices. settings: of its storage."""
    place = require("jaeger", jaeger.IMAGE)
    if place.urls is not None:
        missing("opensearch", f"{place.how} has a storage of its own")
    prefix = prefix or f"t{uuid4().hex[:8]}"
    indices = settings.pop("indices", {}) | {"index_prefix": prefix}
    storage = {"server_urls": [opensearch.url], "indices": indices, **settings}
    server = start_jaeger(place, directory, jaeger.OPENSEARCH, opensearch=storage)
    try:
        yield JaegerOnOpenSearch(server, opensearch, prefix)
    finally:
        server.stop()


def start_opensearch(place: Place, directory: Path) -> OpenSearch:
    """Start an OpenSearch in a directory: the minimal distribution, which has no plugin for logins."""
    if place.urls is not None:
        return OpenSearch(place.urls[0], place.how)
    if place.program is not None:
        http, transport = free_ports(2)
        ports = {
            "http.host": "127.0.0.1",
            "http.port": http,
            "transport.host": "127.0.0.1",
            "transport.port": transport,
        }
        settings = {**_SETTINGS, **ports, "path.data": directory / "data", "path.logs": directory / "logs"}
        command = [place.program, *(f"-E{name}={value}" for name, value in settings.items())]
        program = Program(command, directory, {**os.environ, "OPENSEARCH_JAVA_OPTS": _MEMORY})
        url = f"http://127.0.0.1:{http}"
        program.wait_until(lambda: answers(url), _START_SECONDS)
        return OpenSearch(url, place.how, program)
    return _container(place)


def _container(place: Place) -> OpenSearch:
    engine, _ = container_engine()
    container = engine.containers.run(
        place.image,
        environment={**_SETTINGS, "DISABLE_SECURITY_PLUGIN": "true", "OPENSEARCH_JAVA_OPTS": _MEMORY},
        ports={"9200/tcp": ("127.0.0.1", None)},
        detach=True,
    )
    try:
        container.reload()
        url = f"http://127.0.0.1:{container.ports['9200/tcp'][0]['HostPort']}"
        deadline = time.monotonic() + _START_SECONDS
        while not answers(url):
            if time.monotonic() > deadline:
                raise Failed(container.logs(tail=20).decode(errors="replace"))
            time.sleep(0.5)
    except BaseException:
        container.remove(force=True)
        raise
    return OpenSearch(url, place.how, container=container)
