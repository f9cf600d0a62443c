"""``JaegerReader``: the runs in a Jaeger, over its HTTP query API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from itertools import islice, product
from typing import Final

from runspan.backends.jaeger.response_cache import ResourceSpanCache
from runspan.backends.jaeger.responses import (
    FoundSpan,
    MalformedResponse,
    find_traces,
    read_error,
    read_services,
    read_trace,
)
from runspan.backends.jaeger.search import LONG_RUN, DensityHint, Traces, WindowedSearch
from runspan.backends.jaeger.search_api import (
    DAY,
    WRONG_PATH,
    SearchApi,
    StoreLimits,
    detect_limits,
    detect_search_api,
    get_stored,
    patterns,
    storage_error,
)
from runspan.backends.remote.client import RemoteClient, document_of, fetch_with_retry, trace_id_of
from runspan.backends.remote.config import RemoteConfig
from runspan.backends.remote.filters import check_order
from runspan.codec.decode import RunSummary, verify_run
from runspan.codec.fields import (
    MAX_ATTRIBUTE_BYTES,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    RUN_ID,
    RUN_TABLE,
    TENANT,
    WORKFLOW_ID,
)
from runspan.codec.full_text import SEARCHED
from runspan.codec.semconv import ERROR_TYPE
from runspan.contracts import (
    Capabilities,
    Cursor,
    Document,
    Page,
    RunQuery,
    StatsPage,
    StatsQuery,
    limited_notes,
    stats_unsupported,
    stopped_note,
)
from runspan.errors import BackendRefused, BackendTimeout, NotFound, TraceIncomplete
from runspan.http.client import Response
from runspan.model.document import TERMINAL_RUN_STATUSES
from runspan.model.span import Span
from runspan.model.timestamps import rfc3339
from runspan.otlp.env import Headers
from runspan.otlp.protobuf_writer import Resource

CHECK_SECONDS: Final = 5.0
LIST_SECONDS: Final = 60.0
"""How long all requests for a list or a run may take together; each has the timeout of the config."""
SCAN_SECONDS: Final = 10.0
"""How long a list searches that has to read all runs, before it ends with what it has found."""

_MIN_GAP_RUNS: Final = 10
"""Runs of a page whose average gap replaces an earlier one."""
_MAX_HINTS: Final = 256
"""How many kinds of lists have a hint."""
_NO_TRACE: Final = f"/api/v3/traces/{1:032x}?raw_traces=true"
_TOO_LONG_AGE: Final = (
    "Jaeger names an index for each day of max_span_age in one URL: shorten it to 2160h, raise "
    "http.max_initial_line_length of Elasticsearch or OpenSearch, or name the services of the runs in "
    "RUNSPAN_BACKEND_SERVICES"
)
_SLOW_RUN: Final = "name its services in RUNSPAN_BACKEND_SERVICES, and see whether Jaeger's storage is overloaded"
_TRACES_OF_RUN: Final = 100
"""Traces with the id of one run: its own, those of its callers, and those of other tenants."""
_STATUS, _TRIGGER = (
    next(field.key for field in RUN_TABLE.labels if field.member == member) for member in ("status", "trigger_type")
)
_MAX_SEARCHED_CHARACTERS: Final = MAX_ATTRIBUTE_BYTES // 4
"""Longer values are not one attribute under the usual name."""
_ListKind = tuple[str, str | None, tuple[str, ...], tuple[bool, bool], tuple[str | None, str | None]]
"""What lists have in common whose runs lie at similar times."""


class JaegerReader:
    """See ``contracts.TraceReader``. Reads change nothing in the Jaeger: they request unadjusted traces.

    services: the ``service.name`` of the resources under which runs were exported; None searches every service that
    Jaeger knows, one after the other.
    clock: nanoseconds since 1970, used as a hint only.
    monotonic, sleep: seconds.
    """

    capabilities = Capabilities(foreign_spans=True, searches=SEARCHED)

    def __init__(
        self,
        config: RemoteConfig,
        *,
        services: Sequence[str] | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = RemoteClient(config)
        self._services = None if services is None else tuple(services)
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._search_api: SearchApi | None = None
        self._hints: dict[_ListKind, DensityHint] = {}
        self._limits: StoreLimits | None = None
        self._resource_spans = ResourceSpanCache()
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="jaeger")

    def with_headers(self, headers: Headers) -> JaegerReader:
        """See ``remote.tenants.HeaderReader``. The cache is shared: what it returns follows from a response alone."""
        other = copy(self)
        other._http = self._http.with_headers(headers)
        other._search_api = other._limits = None
        other._hints = {}
        return other

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. Retry an incomplete trace for about a second.

        The run of a trace is the one asked for, because its trace id is derived from its id and tenant.
        """
        trace_id = trace_id_of(run_id, tenant)
        deadline = self._monotonic() + LIST_SECONDS
        first: list[list[Span]] = []
        try:
            # Jaeger returns at once what it has stored, so only an incomplete trace is worth a retry.
            first.append(self.spans(trace_id))
            verified = fetch_with_retry(
                lambda: first.pop() if first else self.spans(trace_id),
                self._sleep,
                is_late=lambda: self._monotonic() > deadline,
            )
            spans = self._searched_spans(run_id, trace_id, deadline) if verified.incomplete else []
        except (NotFound, TraceIncomplete) as error:
            spans = self._searched_spans(run_id, trace_id, deadline)
            if not spans:
                raise (self._not_found(f"run {run_id!r}") if isinstance(error, NotFound) else error) from None
        return document_of(verify_run(spans) if spans else verified)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``."""
        response = self._stored_trace(trace_id.hex())
        if response.status == 404:
            if read_error(response.content) is None:
                raise self._http.refused(response, WRONG_PATH)
            raise self._not_found(f"trace {trace_id.hex()}")
        try:
            spans = read_trace(response.content)
        except MalformedResponse:
            raise self._http.refused(response, WRONG_PATH) from None
        if not spans:
            raise self._not_found(f"trace {trace_id.hex()}")
        others = {span.trace_id for span in spans} - {trace_id}
        if others:
            raise BackendRefused(
                where=self._http.name,
                expected=f"trace {trace_id.hex()}",
                got=f"trace {min(others).hex()}",
                hint="does a cache or a gateway in front of Jaeger return the response to another request?",
            )
        return spans

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        """See ``TraceReader``. The revision spans of a run lie at its start, which may be before ``max_span_age``."""
        trace_id = trace_id_of(run_id, tenant)
        deadline = self._monotonic() + LIST_SECONDS
        try:
            spans = self.spans(trace_id)
        except NotFound:
            spans = []
        if not any(span.attributes().get(ROLE) in (ROLE_RUN, ROLE_REVISION) for span in spans):
            spans = self._searched_spans(run_id, trace_id, deadline) or spans
        if not spans:
            raise self._not_found(f"run {run_id!r}")
        return spans

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``. Raise BackendTimeout when the list takes longer than ``LIST_SECONDS``."""
        check_order(query, self._http.name)
        conditions = _conditions(query)
        if not conditions:
            return Page([])
        now = self._clock() // 1000
        # Every list fetches them, so that runs of a new service are not left out.
        services, search, limits = self._searched(now)
        if not services:
            return Page([])
        began = self._monotonic()
        deadline = began + LIST_SECONDS

        def is_late() -> bool:
            return self._monotonic() > began + SCAN_SECONDS

        def search_all(conditions: Sequence[_Condition], lo: int, hi: int, depth: int) -> list[Traces]:
            self._check_time(deadline, "the list", "ask for a later time, a workflow or a status")
            searches = product(services, conditions)
            return [
                _by_trace(
                    search(service, patterns(attributes) if limits.is_elastic else attributes, shortest, lo, hi, depth)
                )
                for service, (attributes, shortest) in searches
            ]

        edges = (query.stuck_before is None, query.is_by_end)
        # Where the others lie says how wide to search, if all of them are read.
        contents = (None, None) if _reads_all(query) else (query.trigger, query.error_code)
        kind = (query.tenant, query.workflow_id, query.statuses, edges, contents)
        hint = self._hints.get(kind) or DensityHint(now)
        try:
            long_runs = partial(search_all, _long_run_conditions(query, conditions))
            scan = is_late if _reads_all(query) else None
            windows = WindowedSearch(
                partial(search_all, conditions),
                query,
                hint,
                limits,
                now,
                scan,
                long_runs,
                self._read_traces if limits.is_elastic else None,
                self._http.config.lookback_days,
            )
            rows = list(islice(windows.rows(), query.limit + 1))
        except BackendRefused:
            self._forget_server()
            raise
        except MalformedResponse as error:
            raise BackendRefused(
                where=self._http.name, expected="spans as Jaeger writes them", got=str(error)[:300]
            ) from None
        if not _reads_all(query):
            self._save_hint(kind, hint, query, rows)
        has_more = len(rows) > query.limit
        rows = rows[: query.limit]
        cursor = Cursor(rows[-1].time, rows[-1].run_id) if has_more and rows else None
        end = 0 if cursor is None else cursor.time
        notes = [text for at, text in windows.notes if at >= end]
        if windows.ended_at is not None:
            cursor = Cursor.behind(windows.ended_at)
            notes.append(stopped_note(SCAN_SECONDS, rfc3339(windows.ended_at)))
        matches = {row.run_id: windows.matches[row.run_id] for row in rows if row.run_id in windows.matches}
        return Page([row.summary for row in rows], cursor, limited_notes(notes), matches)

    def run_stats(self, query: StatsQuery) -> StatsPage:
        """See ``TraceReader``. Raises QueryUnsupported."""
        raise stats_unsupported(self._http.name)

    def check(self) -> None:
        """See ``TraceReader``."""
        if self._services is None:
            self._fetch_services(CHECK_SECONDS)
            return
        # Lists do not need the services that Jaeger knows, which it cannot tell for a long max_span_age.
        response = self._http.get(_NO_TRACE, accept_statuses=(404,), timeout=CHECK_SECONDS)
        try:
            if response.status == 404:
                is_jaeger = read_error(response.content) is not None
            else:
                is_jaeger = bool(read_trace(response.content))
        except MalformedResponse:
            is_jaeger = False
        if not is_jaeger:
            raise self._http.refused(response, WRONG_PATH)

    def close(self) -> None:
        """See ``TraceReader``."""
        self._pool.shutdown()
        self._http.close()

    def _save_hint(self, kind: _ListKind, hint: DensityHint, query: RunQuery, rows: list[RunSummary]) -> None:
        """Remember where the runs of a list lie, for the next list of this kind."""
        if len(rows) < 2:
            return
        newest, oldest = rows[0].time // 1000, rows[-1].time // 1000
        gap = (newest - oldest) // (len(rows) - 1) if len(rows) >= _MIN_GAP_RUNS or hint.gap is None else hint.gap
        hint = DensityHint(newest if query.before is None else hint.newest, gap)
        if len(self._hints) >= _MAX_HINTS:
            self._hints.clear()
        self._hints[kind] = hint

    def _searched(self, now: int) -> tuple[Sequence[str], SearchApi, StoreLimits]:
        """Return the services of the runs, and how the store is searched for them. now: microseconds since 1970."""
        services = self._fetch_services() if self._services is None else self._services
        search = self._search_api = self._search_api or detect_search_api(self._http, self._resource_spans)
        limits = self._limits
        if limits is None:
            limits = detect_limits(search, services[0] if services else Resource().service_name, now)
            # An empty store shows nothing: with an alias it has no index that could refuse a search.
            self._limits = limits if services or limits.is_elastic else None
        if self._services is None and limits.is_elastic and Resource().service_name not in services:
            # Jaeger notes a service once in hours, in the index of a span's day, which may be too old to be read.
            services = [*services, Resource().service_name]
        return services, search, limits

    def _searched_spans(self, run_id: str, trace_id: bytes, deadline: float) -> list[Span]:
        """Return the spans of a run in Elasticsearch or OpenSearch, those before ``max_span_age`` too, by a search.

        A trace is read there by its id from later days only. Empty for every other store. deadline: seconds of the
        monotonic clock; raise BackendTimeout after it.
        """
        if self._limits is not None and not self._limits.is_elastic:
            return []
        now = self._clock() // 1000
        services, search, limits = self._searched(now)
        attributes = patterns({RUN_ID: run_id})
        if not limits.is_elastic or not attributes:
            return []
        self._check_time(deadline, "the run", _SLOW_RUN)
        spans = self._read_trace(trace_id.hex())
        for lo, hi in limits.ranges(now, self._http.config.lookback_days * DAY):
            for service in services:
                self._check_time(deadline, "the run", _SLOW_RUN)
                # A span that lies near the edge of a range is found in both.
                known = {span.span_id for span in spans}
                found = search(service, attributes, 0, lo, hi, _TRACES_OF_RUN)
                spans += [span for span in found if span.trace_id == trace_id.hex() and span.span_id not in known]
        return [span.span() for span in spans]

    def _read_traces(self, trace_ids: Sequence[str]) -> Iterable[list[FoundSpan]]:
        """Return the spans of each trace by its id, in hex, several at a time."""
        return self._pool.map(self._read_trace, trace_ids)

    def _read_trace(self, trace_id: str) -> list[FoundSpan]:
        response = self._stored_trace(trace_id)
        try:
            found = [] if response.status == 404 else find_traces(response.content)
        except MalformedResponse:
            raise self._http.refused(response, WRONG_PATH) from None
        return [span for span in found if span.trace_id == trace_id]

    def _stored_trace(self, trace_id: str) -> Response:
        """Return the response to a request for a trace by its id, in hex, also with HTTP 404."""
        response = get_stored(self._http, f"/api/v3/traces/{trace_id}", {"raw_traces": "true"})
        if response.status == 500:
            raise storage_error(self._http, response)
        return response

    def _forget_server(self) -> None:
        """Detect search API and limits again, since the server may have another version or another store by now."""
        self._search_api = self._limits = None

    def _fetch_services(self, timeout: float | None = None) -> list[str]:
        try:
            response = self._http.get("/api/v3/services", timeout=timeout)
        except BackendRefused as error:
            if "too_long_http_line" in str(error):
                error.hint = _TOO_LONG_AGE
            raise
        try:
            return read_services(response.content)
        except MalformedResponse:
            raise self._http.refused(response, WRONG_PATH) from None

    def _check_time(self, deadline: float, what: str, hint: str) -> None:
        """Raise BackendTimeout after the deadline, seconds of the monotonic clock."""
        if self._monotonic() > deadline:
            expected = f"{what} within {LIST_SECONDS:g} seconds"
            raise BackendTimeout(where=self._http.name, expected=expected, got="a search that takes longer", hint=hint)

    def _not_found(self, what: str) -> NotFound:
        return NotFound(
            "not in this Jaeger",
            where=f"{what} in {self._http.name}",
            hint="it was never sent there, was sent for another tenant, is past retention, or lies where Jaeger does "
            "not look: in Elasticsearch and OpenSearch a trace is read by its id within max_span_age, 72h by default, "
            f"and a run is searched for from tomorrow back to {self._http.config.lookback_days} days ago; nothing of "
            "1970 is found, where a run without any time lies",
        )


def _by_trace(spans: Sequence[FoundSpan]) -> Traces:
    traces: dict[str, list[FoundSpan]] = {}
    for found in spans:
        traces.setdefault(found.trace_id, []).append(found)
    return traces


_Condition = tuple[Mapping[str, str], int]
"""Attributes of a span, and its shortest length in microseconds."""


def _long_run_conditions(query: RunQuery, conditions: Sequence[_Condition]) -> list[_Condition]:
    """Return the conditions of runs that are ``LONG_RUN`` or longer, or that changed after their end.

    The span of such a change has no length, whatever the run's was.
    """
    attributes = {key: value for key, value in conditions[0][0].items() if key not in (ROLE, _STATUS)}
    statuses = query.statuses or TERMINAL_RUN_STATUSES
    changed = [(attributes | {ROLE: ROLE_REVISION, _STATUS: status}, 0) for status in statuses]
    of_statuses = [attributes | {_STATUS: status} for status in query.statuses] or [attributes]
    return [*[({**each, ROLE: ROLE_RUN}, LONG_RUN) for each in of_statuses], *changed]


def _conditions(query: RunQuery) -> list[_Condition]:
    """Return conditions on run and revision spans; every run in the list has a span that meets one of them.

    Without a condition no run can be in the list. Values that are encoded in another form are compared with the run
    only.
    """
    wanted = {
        TENANT: query.tenant or None,
        WORKFLOW_ID: query.workflow_id,
        _TRIGGER: query.trigger,
        ERROR_TYPE: query.error_code,
    }
    attributes = {key: value for key, value in wanted.items() if value is not None}
    try:
        "".join((*attributes.values(), *query.statuses)).encode()
    except UnicodeEncodeError:
        return []
    attributes = {key: value for key, value in attributes.items() if _is_searched(value) or key == TENANT}
    if query.stuck_before is not None:
        return [(attributes | {ROLE: ROLE_REVISION}, 0)]  # only revision spans carry runs that have not ended
    if query.statuses and all(map(_is_searched, query.statuses)):
        return [(attributes | {_STATUS: status}, 0) for status in dict.fromkeys(query.statuses)]
    if TENANT in attributes:
        return [(attributes, 0)]  # spans of steps have none
    return [(attributes | {ROLE: role}, 0) for role in (ROLE_RUN, ROLE_REVISION)]


def _reads_all(query: RunQuery) -> bool:
    """Return whether Jaeger finds runs that are not in the list, however many."""
    others = (query.min_duration, query.model, query.step_type, query.text)
    return any(other is not None for other in others)


def _is_searched(value: str) -> bool:
    return 0 < len(value) <= _MAX_SEARCHED_CHARACTERS
