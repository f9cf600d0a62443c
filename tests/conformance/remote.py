"""Backends reached over HTTP: runs go in through the project's own delivery, and a search waits until they show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx

from runspan import Run, encode
from runspan.backends.remote.settings import settings_from as remote_settings
from runspan.backends.tempo import TempoReader
from runspan.contracts import Document, Page, RunQuery, TraceReader
from runspan.delivery import Batch, Delivery, RunSpans, connect, settings_from
from runspan.fields import REVISION, RUN_ID
from runspan.otlp.wire import Resource, request_bytes, span_bytes
from runspan.span import Span
from servers import Tempo

from .harness import T0

VISIBLE_SECONDS: Final = 60.0
LATEST: Final = 2**32 - 1

Heads = set[tuple[str, str]]
"""Trace id and span id of head spans, in hex."""


@dataclass
class WaitingReader:
    """The reader under test; a search first waits until all that was sent can be found."""

    reader: TraceReader
    visible: Callable[[str], Heads]
    sent: dict[str, Heads] = field(default_factory=dict)

    @property
    def capabilities(self) -> Any:
        return self.reader.capabilities

    def document(self, run_id: str, tenant: str = "") -> Document:
        return self.reader.document(run_id, tenant)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        return self.reader.spans(trace_id)

    def search(self, query: RunQuery) -> Page:
        deadline = time.monotonic() + VISIBLE_SECONDS
        for tenant in list(self.sent):
            while self.sent[tenant] - self.visible(tenant):
                assert time.monotonic() < deadline, f"not visible within {VISIBLE_SECONDS} seconds"
                time.sleep(0.05)
            del self.sent[tenant]
        return self.reader.search(query)

    def check(self) -> None:
        self.reader.check()

    def close(self) -> None:
        self.reader.close()


@dataclass
class RemoteByOtlp:
    """A backend over HTTP, runs sent as spans over OTLP."""

    reader: WaitingReader
    delivery: Delivery

    def send(self, *runs: Run, tenant: str, observed_at: int = T0) -> None:
        for run in runs:
            self.send_spans(encode(run, tenant=tenant, observed_at=observed_at), tenant)

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        parts = [span_bytes(span) for span in spans]
        run = RunSpans(str(spans[0].attributes()[RUN_ID]), parts, sum(map(len, parts)))
        before = self.delivery.report().runs_accepted
        assert self.delivery.submit(Batch(partial(request_bytes, Resource()), (run,)))
        assert self.delivery.flush().runs_accepted == before + 1
        heads = {(span.trace_id.hex(), span.span_id.hex()) for span in spans if REVISION in span.attributes()}
        self.reader.sent.setdefault(tenant, set()).update(heads)

    def close(self) -> None:
        self.delivery.close()
        self.reader.close()


def tempo_by_otlp(server: Tempo) -> RemoteByOtlp:
    """The Tempo of a test run."""
    reader = TempoReader(remote_settings(f"tempo+{server.url}", {}))
    delivery = connect(settings_from({}, endpoint=server.otlp))
    return RemoteByOtlp(WaitingReader(reader, partial(tempo_heads, server.url)), delivery)


def tempo_heads(url: str, tenant: str) -> Heads:
    """The head spans that a search of Tempo finds, asked without the reader under test."""
    of_tenant = f'span.runspan.tenant = "{tenant}" && ' if tenant else ""
    query = f"{{ {of_tenant}span.{REVISION} != nil }} | by(span:id) with(most_recent=true)"
    parameters = {"q": query, "start": 1, "end": LATEST, "limit": 100_000, "spss": 1}
    answer = httpx.get(f"{url}/api/search", params=parameters, trust_env=False, timeout=30)
    answer.raise_for_status()
    return {
        (trace["traceID"].zfill(32), span["spanID"].zfill(16))
        for trace in answer.json()["traces"]
        for span_set in trace["spanSets"]
        for span in span_set["spans"]
    }
