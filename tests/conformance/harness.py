"""What the suite needs of a backend: a way to send runs, and the reader under test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Page, RunQuery, TraceReader
from runspan.model.span import Span
from runspan.model.timestamps import canonical_text
from runspan.otlp.bulk_reader import read_request
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

T0 = 1_760_000_000_000_000_000
"""The start of the first run of a test, nanoseconds since 1970: whole milliseconds."""
MS = 1_000_000
SECOND = 1_000_000_000
EVER = (0, 1 << 63)


class Harness(Protocol):
    """One backend. Each test uses a tenant of its own, so backends may keep what other tests wrote."""

    reader: TraceReader
    lists_by_summary: bool
    """Whether a list shows a run as soon as its revision span is there, which proves the list item without the steps.
    Otherwise it shows complete revisions only. ``document`` proves the run in either case."""
    finds: tuple[int, int]
    """From when to when spans can start that the backend finds, in nanoseconds since 1970."""
    hides_seconds: float
    """How long a part of a trace that was found before may be missing, while the backend writes it to disk."""

    def send(self, *runs: Run, tenant: str, observed_at: int = ...) -> None:
        """Send runs as observed at this time, and return when the reader can read them."""
        ...

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        """Send spans, and return when the reader can read them."""
        ...


def otlp(spans: Sequence[Span]) -> bytes:
    """Return the spans as the body of an OTLP request."""
    return request_bytes(Resource(), [scoped_bytes(span) for span in spans])


def write_spans(store: SqliteStore, spans: Sequence[Span], tenant: str = "") -> None:
    """Write spans to an embedded store over OTLP; all are accepted."""
    assert store.write(read_request(otlp(spans)), tenant).rejected == ()


def foreign_otlp(trace_id: bytes, span_id: bytes, name: str) -> bytes:
    """Return the body of an OTLP request with one span of other instrumentation."""
    data = TracesData()
    outer = data.resource_spans.add()
    outer.resource.attributes.add(key="service.name").value.string_value = "llm"
    span = outer.scope_spans.add().spans.add(trace_id=trace_id, span_id=span_id, name=name)
    span.attributes.add(key="list").value.array_value.values.add().double_value = 0.5
    return data.SerializeToString()


@dataclass
class StoreByDocument:
    """The embedded store; runs are written as documents."""

    reader: SqliteStore
    keeps_all_spans: bool = True
    lists_by_summary = False
    finds = EVER
    hides_seconds = 0.0

    def send(self, *runs: Run, tenant: str, observed_at: int = T0) -> None:
        for run in runs:
            assert self.reader.put(run, tenant=tenant, observed_at=observed_at).rejected == ()

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        write_spans(self.reader, spans, tenant)


@dataclass
class StoreByOtlp(StoreByDocument):
    """The embedded store; runs are sent as spans over OTLP."""

    def send(self, *runs: Run, tenant: str, observed_at: int = T0) -> None:
        for run in runs:
            self.send_spans(encode(run, tenant=tenant, observed_at=observed_at), tenant)


def make_run(run_id: str, at: int = T0, **members: Any) -> Run:
    """Return a run that starts at this time and has ended, with two steps; members replace or extend its own."""
    document: dict[str, Any] = {
        "id": run_id,
        "workflowId": "wf_billing",
        "status": "completed",
        "triggerType": "webhook",
        "startedAt": canonical_text(at),
        "completedAt": canonical_text(at + SECOND),
        "durationMs": 1000,
        "steps": [
            {
                "id": name,
                "name": name.title(),
                "type": "action",
                "status": "completed",
                "startedAt": canonical_text(at + offset),
                "completedAt": canonical_text(at + offset + 100 * MS),
                "durationMs": 100,
                "input": {"run": run_id},
                "output": {"count": offset},
            }
            for name, offset in (("fetch", 0), ("notify", 500 * MS))
        ],
    }
    document |= members
    return Run.from_dict({key: value for key, value in document.items() if value is not ...})


def running(run_id: str, at: int = T0, done: int = 1, **members: Any) -> Run:
    """Return the same run while it runs: the first steps have ended, one is running."""
    steps = make_run(run_id, at).to_dict()["steps"][:done]
    steps.append({"id": "wait", "type": "approval", "status": "running", "startedAt": canonical_text(at + SECOND)})
    return make_run(
        run_id, at, **{"status": "running", "completedAt": ..., "durationMs": ..., "steps": steps} | members
    )


def ids(page: Page) -> list[str]:
    """Return the run ids of a page, in its order."""
    return [json.loads(item)["id"] for item in page.items]


def all_pages(reader: TraceReader, query: RunQuery) -> list[list[str]]:
    """Return the run ids of all pages."""
    pages = []
    while True:
        page = reader.search(query)
        pages.append(ids(page))
        if page.cursor is None:
            return pages
        query = replace(query, cursor=page.cursor)
