"""Jaeger on OpenSearch in the suite: what was sent can be read some tenths of a second after it was accepted."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from conformance.harness import SECOND, otlp
from conformance.sending import ByOtlp, delivery_to
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import remote_config
from runspan.contracts import Document, Page, RunQuery
from runspan.model.span import Span
from support.servers.opensearch import FIRST_DAY, JaegerOnOpenSearch, days_since

VISIBLE_SECONDS: Final = 120.0
"""New indices on a busy machine take seconds each."""
DAY: Final = 86_400 * SECOND
LOOKBACK_DAYS: Final = days_since(FIRST_DAY)
NOT_SEARCHED: Final = f"runs that started more than {LOOKBACK_DAYS} days ago were not searched"
_TRACES: Final = 100
"""That are looked for at once."""


@dataclass
class SettledReader:
    """The reader under test; each call first waits until everything that was sent can be found.

    The line of a list that says how far back it was searched is left out: no test sends older runs.
    """

    reader: JaegerReader
    server: JaegerOnOpenSearch
    sent: dict[str, dict[str, list[bytes]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """All spans that were sent, by trace id and span id, in hex."""
    pending: set[str] = field(default_factory=set)
    """Traces of which something was sent since the last call."""

    @property
    def capabilities(self) -> Any:
        return self.reader.capabilities

    def document(self, run_id: str, tenant: str = "") -> Document:
        self._wait()
        return self.reader.document(run_id, tenant)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        self._wait()
        return self.reader.spans(trace_id)

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        self._wait()
        return self.reader.run_spans(run_id, tenant)

    def search(self, query: RunQuery) -> Page:
        self._wait()
        page = self.reader.search(query)
        return replace(page, partial=tuple(note for note in page.partial if note != NOT_SEARCHED))

    def check(self) -> None:
        self.reader.check()

    def close(self) -> None:
        self.reader.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + VISIBLE_SECONDS
        while self.pending:
            some = sorted(self.pending)[:_TRACES]
            found: dict[tuple[str, str], list[Any]] = defaultdict(list)
            for document in self.server.spans(some):
                found[document["traceID"], document["spanID"]].append(document)
            if all(
                is_visible(sent, found[trace_id, span_id])
                for trace_id in some
                for span_id, sent in self.sent[trace_id].items()
            ):
                self.pending -= {*some}
                continue
            assert time.monotonic() < deadline, f"not visible within {VISIBLE_SECONDS} seconds"
            time.sleep(0.05)


def is_visible(sent: list[bytes], found: list[Any]) -> bool:
    """Return whether all spans with one id were found; a Jaeger may store two that are the same as one."""
    different = [document for index, document in enumerate(found) if document not in found[:index]]
    return len(found) >= len(sent) or len(different) >= len({*sent})


@dataclass
class OpenSearchByOtlp(ByOtlp):
    """A Jaeger on OpenSearch."""

    reader: SettledReader

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        super().send_spans(spans, tenant)
        for span in spans:
            self.reader.sent[span.trace_id.hex()][span.span_id.hex()].append(otlp([span]))
            self.reader.pending.add(span.trace_id.hex())


def jaeger_on_opensearch_by_otlp(server: JaegerOnOpenSearch) -> OpenSearchByOtlp:
    """Return the harness of a Jaeger on OpenSearch."""
    env = {"RUNSPAN_BACKEND_LOOKBACK_DAYS": str(LOOKBACK_DAYS)}
    reader = JaegerReader(remote_config(f"jaeger+{server.url}", env), services=("runspan",))
    first, now = time.time_ns() - LOOKBACK_DAYS * DAY, time.time_ns()
    return OpenSearchByOtlp(SettledReader(reader, server), delivery_to(server.otlp), finds=(first, now + DAY))


def jaeger_on_opensearch_with_defaults(
    server: JaegerOnOpenSearch, services: Sequence[str] | None = None, **env: str
) -> OpenSearchByOtlp:
    """Return a harness whose reader has the defaults, but for the services that it searches and these variables."""
    reader = JaegerReader(remote_config(f"jaeger+{server.url}", env), services=services)
    return OpenSearchByOtlp(SettledReader(reader, server), delivery_to(server.otlp))
