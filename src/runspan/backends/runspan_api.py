"""``RunspanApiReader``: the runs of another runspan server, read over the platform's REST API."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from runspan.codec.fields import ROLE
from runspan.contracts import Capabilities, Cursor, Document, Page, RunQuery, StatsGroup, StatsPage, StatsQuery
from runspan.errors import PARSE_ERRORS, BackendRefused, Forbidden, NotFound, PayloadError, QueryError, QueryUnsupported
from runspan.http.client import ErrorHints, Response
from runspan.model.document import MAX_RUN_ID_BYTES
from runspan.model.json_scanner import members, string_value
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import MILLISECOND, SECOND, parse_ns, rfc3339
from runspan.otlp.json import read_spans
from runspan.platform_api.client import API_PATH, TIMEOUT, ApiClient, parse_api_url, read_run, run_path
from runspan.platform_api.schema import MalformedResponse, read_data, read_items

_KEY_VARIABLE: Final = "RUNSPAN_API_KEY"

T = TypeVar("T")


class _TraceLink(msgspec.Struct, rename="camel"):
    trace_id: str


class RunspanApiReader:
    """A ``TraceReader`` over ``url/api/v1``.

    A server takes the tenant from the API key. For a query of a named tenant, the trace id of the result proves whose
    run it is; it is refused as Forbidden if the key belongs to another tenant. Without a name the key's tenant applies.

    api_key: Sent as ``x-api-key``.
    timeout: Seconds for a request, from the connection to the last byte.
    clock: Nanoseconds since 1970.
    """

    capabilities = Capabilities(searches="what that server searches")

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._api_key = api_key
        self._clock = clock
        self._api = ApiClient(
            parse_api_url("backend", url, key_variable=_KEY_VARIABLE),
            key_hint=f"set {_KEY_VARIABLE}, or --api-key-file",
            hints=ErrorHints(unreachable="is the server running? start one with: runspan serve"),
            timeout=timeout,
        )

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. The text is cut out of the response, never parsed and serialized again."""
        if not _is_run_id(run_id):
            raise NotFound("no such run", where=f"run {run_id[:60]!a}")
        document = self._get(run_path(run_id), read_run)
        if self._id_of(document.text.decode()) != run_id:
            raise self._api.refused(f"the run {run_id}", "another run")
        self._verify_tenant(run_id, tenant)
        return document

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``; runspan's own spans only."""
        body = self._get(f"{API_PATH}/traces/{trace_id.hex()}", lambda response: response.content)
        try:
            return [span for span in read_spans(body) if ROLE in span.attributes()]
        except PayloadError as error:
            raise self._api.refused("a trace in OTLP/JSON", error.got) from None

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        """See ``TraceReader``."""
        return self.spans(run_ids(run_id, tenant).trace_id, tenant)

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``.

        The API takes ``since`` and ``stuckAfter`` as durations, so their bounds move with the clock. Raises
        QueryUnsupported if the server does not know a filter or order that is an extension of the platform's API.
        """
        parameters: dict[str, str | int] = {"limit": query.limit}
        if query.workflow_id is not None:
            parameters["workflowId"] = query.workflow_id
        if query.status is not None:
            parameters["status"] = ",".join(query.statuses)
        if query.since is not None:
            parameters["since"] = self._since(query.since)
        if query.cursor is not None:
            parameters["cursor"] = query.cursor.token()
        if query.stuck_before is not None:
            parameters["stuckAfter"] = f"{max(1, (self._clock() - query.stuck_before) // SECOND)}s"
        edges = {"to": query.until, "endedFrom": query.ended_since, "endedTo": query.ended_until}
        parameters |= {name: _moment(edge) for name, edge in edges.items() if edge is not None}
        texts = {
            "triggerType": query.trigger,
            "errorCode": query.error_code,
            "minDuration": None if query.min_duration is None else _seconds(query.min_duration),
            "model": query.model,
            "stepType": query.step_type,
            "q": query.text,
            "sort": None if query.order == "start" else query.order,
        }
        parameters |= {name: text for name, text in texts.items() if text is not None}
        try:
            items, meta, cursor = self._get(
                f"{API_PATH}/runs", lambda response: read_items(response.content), parameters
            )
        except UnicodeEncodeError:
            return Page([])  # no stored text contains a lone surrogate
        echoed = msgspec.to_builtins(meta)
        for name in ("stuckAfter", *edges, *texts):
            if parameters.get(name) != echoed[name]:
                raise QueryUnsupported(
                    where=self._api.base,
                    expected=f"a server that knows {name}",
                    got="one that ignores it",
                    hint="update that runspan server; the platform's own API does not have this filter",
                )
        ids = [self._id_of(item) for item in items]
        if ids and query.tenant:
            self._verify_tenant(ids[0], query.tenant)
        following = self._next_cursor(query.cursor, cursor)
        return Page([item.encode() for item in items], following, tuple(meta.partial), meta.matches)

    def run_stats(self, query: StatsQuery) -> StatsPage:
        """See ``TraceReader``. Raises Forbidden for a query of a named tenant: no trace id proves whose they are."""
        if query.tenant:
            raise Forbidden(
                where=self._api.base,
                expected="statistics of the API key's tenant",
                got=f"those of {query.tenant}",
                hint="the API key decides whose runs are counted: omit --tenant",
            )
        parameters: dict[str, str | int] = {"limit": query.limit, "timeZone": query.time_zone}
        optional = {
            "workflowId": query.workflow_id,
            "groupBy": ",".join(query.group_by) or None,
            "from": None if query.since is None else _moment(query.since),
            "to": None if query.until is None else _moment(query.until),
        }
        parameters |= {name: value for name, value in optional.items() if value is not None}
        try:
            return self._get(f"{API_PATH}/stats", _read_stats, parameters)
        except UnicodeEncodeError:
            return StatsPage([], query.since, query.until)  # no stored text contains a lone surrogate
        except (NotFound, BackendRefused) as error:
            if not isinstance(error, NotFound) and "HTTP 404" not in error.got:
                raise
            raise QueryUnsupported(
                where=self._api.base,
                expected="a server with statistics",
                got="one without",
                hint="the platform's own API has none: send the runs to a runspan server",
            ) from None

    def check(self) -> None:
        """See ``TraceReader``."""
        self._get("/readyz", lambda response: None)

    def close(self) -> None:
        """See ``TraceReader``."""
        self._api.close()

    def _get(self, path: str, read: Callable[[Response], T], parameters: Mapping[str, str | int] | None = None) -> T:
        return self._api.read(self._api.get(path, parameters or {}, self._api_key), read)

    def _next_cursor(self, cursor: Cursor | None, token: str | None) -> Cursor | None:
        """Return the start of the next page. It must be after this one, or callers would never reach the end."""
        if token is None:
            return None
        try:
            following = Cursor.parse(token)
        except QueryError as error:
            raise self._api.refused("a cursor of runspan", error.got) from None
        if cursor is not None and (
            following.order != cursor.order or (following.time, following.run_id) >= (cursor.time, cursor.run_id)
        ):
            raise self._api.refused("a cursor after that of the page before", "one that does not move on")
        return following

    def _verify_tenant(self, run_id: str, tenant: str) -> None:
        """Raise Forbidden if a run belongs to another tenant: its trace id follows from the tenant and its own id."""
        if not tenant:
            return
        if self._get(f"{run_path(run_id)}/trace", _trace_id) != run_ids(run_id, tenant).trace_id.hex():
            raise Forbidden(
                where=self._api.base,
                expected=f"runs of {tenant}",
                got="those of another tenant",
                hint="the API key decides whose runs are returned: use a key of that tenant, or omit --tenant",
            )

    def _id_of(self, text: str) -> str:
        """Return the id of a run document or summary; BackendRefused if it is neither."""
        if text.startswith("{"):
            for member in members(text, 0):
                if member.key == "id" and member.value_text.startswith('"'):
                    run_id = string_value(member.value_text)
                    if _is_run_id(run_id):
                        return run_id
        raise self._api.refused("runs with their ids", "something else")

    def _since(self, edge: int) -> str:
        """Return the time as minutes before now, rounded up so that nothing is missed; as days if they are many."""
        minutes = max(1, -(-(self._clock() - edge) // (60 * SECOND)))
        return f"{minutes}m" if minutes < 1_000_000 else f"{-(-minutes // 1440)}d"


class _StatsMeta(msgspec.Struct, rename={"from_": "from", "has_more": "hasMore"}):
    from_: str | None
    to: str | None
    has_more: bool
    partial: tuple[str, ...] = ()


class _Stats(msgspec.Struct):
    data: list[StatsGroup]
    meta: _StatsMeta


def _read_stats(response: Response) -> StatsPage:
    try:
        stats = msgspec.json.decode(response.content, type=_Stats)
    except PARSE_ERRORS as error:
        raise MalformedResponse(got=str(error)) from None
    since, until = (None if text is None else parse_ns(text) for text in (stats.meta.from_, stats.meta.to))
    return StatsPage(stats.data, since, until, stats.meta.has_more, stats.meta.partial)


def _trace_id(response: Response) -> str:
    data, _ = read_data(response.content, "{")
    try:
        return msgspec.json.decode(data, type=_TraceLink).trace_id
    except PARSE_ERRORS as error:
        raise MalformedResponse(got=str(error)) from None


def _moment(edge: int) -> str:
    return rfc3339(max(edge, 1))


def _seconds(duration: int) -> str:
    """Return a duration in seconds, rounded up to milliseconds, of which the API has nine digits before the point."""
    milliseconds = min(-(-duration // MILLISECOND), 999_999_999_999)
    return f"{milliseconds // 1000}.{milliseconds % 1000:03}s"


def _is_run_id(run_id: str) -> bool:
    try:
        return 0 < len(run_id.encode()) <= MAX_RUN_ID_BYTES
    except UnicodeEncodeError:
        return False
