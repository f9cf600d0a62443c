"""Tempo in the suite: an accepted run can be read by its id at once; a search waits until it is visible.

A Tempo that the environment names may be one of several processes, which read from a topic what was accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx

from conformance.sending import ByOtlp, delivery_to
from runspan.backends.remote.config import remote_config
from runspan.backends.tempo import TempoReader
from runspan.codec.fields import REVISION
from runspan.contracts import Document, Page, RunQuery, TraceReader
from runspan.errors import NotFound
from runspan.model.span import Span
from support.servers import Tempo

VISIBLE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.2
"""Each question is a search of all that a Tempo has: asked more often, it takes the processor from the other tests."""
LATEST: Final = 2**32 - 1

RevisionSpanIds = set[tuple[str, str]]
"""Trace id and span id of revision spans, in hex."""


@dataclass
class WaitingReader:
    """The reader under test; a search first waits until everything that was sent is visible."""

    reader: TraceReader
    visible: Callable[[str], RevisionSpanIds]
    sent: dict[str, RevisionSpanIds] = field(default_factory=dict)

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
                time.sleep(POLL_SECONDS)
            del self.sent[tenant]
        return self.reader.search(query)

    def check(self) -> None:
        self.reader.check()

    def close(self) -> None:
        self.reader.close()


@dataclass
class TempoByOtlp(ByOtlp):
    """A Tempo, whose search finds a run a second or more after it was accepted."""

    reader: WaitingReader
    hides_seconds: float = 2.0
    reads_later: bool = False

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        super().send_spans(spans, tenant)
        if self.reads_later:
            self._wait_until_read(spans)
        revision_spans = {(span.trace_id.hex(), span.span_id.hex()) for span in spans if REVISION in span.attributes()}
        self.reader.sent.setdefault(tenant, set()).update(revision_spans)

    def _wait_until_read(self, spans: Sequence[Span]) -> None:
        deadline = time.monotonic() + VISIBLE_SECONDS
        sent: dict[bytes, set[bytes]] = {}
        for span in spans:
            sent.setdefault(span.trace_id, set()).add(span.span_id)
        for trace_id, span_ids in sent.items():
            while not span_ids <= self._span_ids(trace_id):
                assert time.monotonic() < deadline, f"not read within {VISIBLE_SECONDS} seconds"
                time.sleep(POLL_SECONDS)

    def _span_ids(self, trace_id: bytes) -> set[bytes]:
        try:
            return {span.span_id for span in self.reader.spans(trace_id)}
        except NotFound:
            return set()


def tempo_by_otlp(server: Tempo) -> TempoByOtlp:
    """Return the harness of a Tempo."""
    reader = WaitingReader(
        TempoReader(remote_config(f"tempo+{server.url}", {})), partial(visible_revision_spans, server.url)
    )
    is_named = server.program is None and server.container is None
    return TempoByOtlp(reader, delivery_to(server.otlp), reads_later=is_named)


def visible_revision_spans(url: str, tenant: str) -> RevisionSpanIds:
    """Return the revision spans that a search of Tempo finds, without the reader under test."""
    of_tenant = f'span.runspan.tenant = "{tenant}" && ' if tenant else ""
    query = f"{{ {of_tenant}span.{REVISION} != nil }} | by(span:id) with(most_recent=true)"
    parameters = {"q": query, "start": 1, "end": LATEST, "limit": 100_000, "spss": 1}
    response = httpx.get(f"{url}/api/search", params=parameters, trust_env=False, timeout=30)
    response.raise_for_status()
    return {
        (trace["traceID"].zfill(32), span["spanID"].zfill(16))
        for trace in response.json()["traces"]
        for span_set in trace["spanSets"]
        for span in span_set["spans"]
    }
