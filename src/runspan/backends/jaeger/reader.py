"""``JaegerReader``: the runs in a Jaeger, over its HTTP query API."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from threading import Lock
from typing import Final

from runspan.backends.jaeger.queries import DepthRefused, SearchApi, detect_search_api, get_trace
from runspan.backends.jaeger.response_cache import ResourceSpanCache, RevisionCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, read_services
from runspan.backends.jaeger.search import DensityHint, TraceRow, Traces, WindowedSearch
from runspan.backends.remote.client import RemoteClient, document_of, fetch_with_retry, trace_id_of
from runspan.backends.remote.config import RemoteConfig
from runspan.codec.fields import PIECE_BYTES, ROLE, ROLE_REVISION, RUN_TABLE, TENANT, WORKFLOW_ID
from runspan.contracts import Capabilities, Cursor, Document, Page, RunQuery
from runspan.errors import BackendRefused, BackendTimeout, NotFound, QueryUnsupported
from runspan.model.span import Span

CHECK_SECONDS: Final = 5.0
LIST_SECONDS: Final = 60.0
"""How long a list may take in all; each search of it has the settings' timeout."""

_TELLING: Final = 10
"""Runs of a page whose average gap replaces an earlier one."""
_HINTS: Final = 256
"""How many kinds of lists are remembered."""
_STATUS: Final = next(field.key for field in RUN_TABLE.labels if field.member == "status")
_LONGEST: Final = PIECE_BYTES // 4
"""Characters of a value that is one attribute under its usual name."""
_Like = tuple[str, str | None, tuple[str, ...], bool]
"""What lists have in common whose runs lie alike."""


class JaegerReader:
    """See ``contracts.TraceReader``. Reads change nothing in the Jaeger: what they ask for is unadjusted.

    services: the resources' ``service.name`` under which runs were exported; None looks through all that Jaeger knows,
    with a search for each.
    clock: nanoseconds since 1970, only a hint where most runs are.
    """

    def __init__(
        self,
        settings: RemoteConfig,
        *,
        services: Sequence[str] | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        list_seconds: float = LIST_SECONDS,
    ) -> None:
        self._http = RemoteClient(settings)
        self._services = None if services is None else tuple(services)
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._list_seconds = list_seconds
        self._lock = Lock()
        self._asking: SearchApi | None = None
        self._hints: dict[_Like, DensityHint] = {}
        self._headings = RevisionCache()
        self._pieces = ResourceSpanCache()
        self._max_depth = 0

    @property
    def settings(self) -> RemoteConfig:
        """Where the Jaeger is."""
        return self._http.config

    @property
    def capabilities(self) -> Capabilities:
        """See ``TraceReader``."""
        return Capabilities(foreign_spans=True)

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. A trace that is incomplete is read again for about a second."""
        trace_id = trace_id_of(run_id, tenant)
        try:
            # What Jaeger has stored it answers at once, so that only an incomplete trace is worth another look.
            first = [self.spans(trace_id)]
            return document_of(
                fetch_with_retry(lambda: first.pop() if first else self.spans(trace_id), self._sleep, patient=True)
            )
        except NotFound:
            raise self._not_found(f"run {run_id!r}") from None

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``."""
        found = get_trace(self._http, trace_id)
        if not found:
            raise self._not_found(f"trace {trace_id.hex()}")
        return found

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``. BackendTimeout when the whole list takes longer than ``list_seconds``."""
        attributes = _attributes(query)
        if attributes is None:
            return Page([])
        asking, services = self._chosen_asking(), self._service_names()
        deadline = self._monotonic() + self._list_seconds

        def ask(lo: int, hi: int, depth: int) -> list[Traces]:
            if self._monotonic() > deadline:
                raise BackendTimeout(
                    where=self._http.name,
                    expected=f"the list within {self._list_seconds:g} seconds",
                    got="no end of it",
                    hint="ask for a later since, a workflow or a status",
                )
            return [_by_trace(asking(service, attributes, lo, hi, depth)) for service in services]

        like = (query.tenant, query.workflow_id, query.statuses, query.stuck_before is None)
        hint = self._hints.get(like) or DensityHint(self._clock() // 1000)
        walk = WindowedSearch(ask, query, hint, self._max_depth, self._headings)
        try:
            rows = list(islice(walk.rows(), query.limit + 1))
        except DepthRefused as error:
            raise QueryUnsupported(
                where=self._http.name,
                expected="a store that searches for more than one trace",
                got=str(error),
                hint="raise max_traces of Jaeger's memory storage",
            ) from None
        except BackendRefused:
            with self._lock:
                self._asking = None  # The server may be another version by now.
            raise
        except MalformedResponse as error:
            raise BackendRefused(
                where=self._http.name, expected="spans as Jaeger writes them", got=str(error)[:300]
            ) from None
        self._learn(like, hint, query, rows)
        self._max_depth = walk.max_depth
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        cursor = Cursor(rows[-1].time, rows[-1].run_id) if more and rows else None
        return Page([row.summary for row in rows], cursor)

    def _learn(self, like: _Like, hint: DensityHint, query: RunQuery, rows: list[TraceRow]) -> None:
        """Remembers where the runs of a list lie, for the next one like it."""
        if len(rows) < 2:
            return
        newest, oldest = rows[0].time // 1000, rows[-1].time // 1000
        gap = (newest - oldest) // (len(rows) - 1) if len(rows) >= _TELLING or hint.gap is None else hint.gap
        hint = DensityHint(newest if query.cursor is None else hint.newest, gap)
        if len(self._hints) >= _HINTS:
            self._hints.clear()
        self._hints[like] = hint

    def check(self) -> None:
        """See ``TraceReader``."""
        self._fetch_services(CHECK_SECONDS)

    def close(self) -> None:
        """See ``TraceReader``."""
        self._http.close()

    def _chosen_asking(self) -> SearchApi:
        with self._lock:
            if self._asking is not None:
                return self._asking
        asking = detect_search_api(self._http, self._pieces)
        with self._lock:
            self._asking = asking
        return asking

    def _service_names(self) -> tuple[str, ...]:
        """Asked for anew by every list: runs of a service that was new a moment ago must not be left out."""
        return tuple(self._fetch_services()) if self._services is None else self._services

    def _fetch_services(self, timeout: float | None = None) -> list[str]:
        answer = self._http.get("/api/v3/services", timeout=timeout)
        try:
            return read_services(answer.content)
        except MalformedResponse:
            raise self._http.refused(answer, "is this the address of Jaeger's query API?") from None

    def _not_found(self, what: str) -> NotFound:
        return NotFound(
            "not in this Jaeger",
            where=f"{what} in {self._http.name}",
            hint="it was never sent there, was sent for another tenant, or is past retention",
        )


def _by_trace(spans: Sequence[FoundSpan]) -> Traces:
    traces: dict[str, list[FoundSpan]] = {}
    for found in spans:
        traces.setdefault(found.trace_id, []).append(found)
    return traces


def _attributes(query: RunQuery) -> dict[str, str] | None:
    """What the head span of every run in the list has among its attributes; None when no run can be in the list.

    Values that are carried in another form are left to the comparison with the document.
    """
    # What has not ended is carried by snapshots alone.
    role = None if query.stuck_before is None else ROLE_REVISION
    wanted = {TENANT: query.tenant or None, WORKFLOW_ID: query.workflow_id, _STATUS: query.status, ROLE: role}
    attributes = {key: value for key, value in wanted.items() if value is not None}
    try:
        "".join(attributes.values()).encode()
    except UnicodeEncodeError:
        return None
    return {key: value for key, value in attributes.items() if 0 < len(value) <= _LONGEST or key == TENANT}
