"""``RestReader``: the runs of another server that speaks the platform's REST API, read over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from runspan.backends.remote.client import too_long
from runspan.codec.fields import ROLE
from runspan.contracts import Capabilities, Cursor, Document, Page, RunQuery
from runspan.errors import (
    BackendBusy,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    Forbidden,
    NotFound,
    PayloadError,
    QueryError,
    QueryUnsupported,
    RateLimited,
    RunspanError,
    SettingError,
    StoreError,
    TraceIncomplete,
    Unauthorized,
)
from runspan.http.retry import parse_retry_after
from runspan.http.transport import DeadlineTransport
from runspan.http.urls import redact_url, sanitize_message, validate_host
from runspan.model.ids import run_ids
from runspan.model.json_scanner import elements, members, skip_space, string_value
from runspan.model.parse import MAX_RUN_ID_BYTES
from runspan.model.span import Span
from runspan.model.timestamps import SECOND
from runspan.otlp.json import read_spans

TIMEOUT: Final = 30.0
"""Seconds for a request, from the connection to the last byte."""

DEFAULT_RETRY_AFTER: Final = 60.0
"""Seconds after a 429 that does not say how long to wait."""

_CLASSES: Final[dict[str, type[RunspanError]]] = {
    "NOT_FOUND": NotFound,
    "UNAUTHORIZED": Unauthorized,
    "FORBIDDEN": Forbidden,
    "VALIDATION_ERROR": QueryError,
    "QUERY_UNSUPPORTED": QueryUnsupported,
    "TRACE_INCOMPLETE": TraceIncomplete,
    "STORE_ERROR": StoreError,
    "BACKEND_UNREACHABLE": BackendUnreachable,
    "BACKEND_TIMEOUT": BackendTimeout,
    "BACKEND_BUSY": BackendBusy,
}


class _Meta(msgspec.Struct, rename="camel"):
    cursor: str | None = None
    has_more: bool = False
    partial: list[str] = []
    stuck_after: str | None = None


class _ErrorInfo(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorInfo


class _TraceLink(msgspec.Struct, rename="camel"):
    trace_id: str


class RunspanApiReader:
    """A ``TraceReader`` over ``base/api/v1``. api_key: sent as ``x-api-key``.

    A server takes the tenant from the key. A query for a named tenant is proved by the trace id of what comes, and
    refused as Forbidden when the key belongs to another one; without a name the key's own tenant answers.
    """

    capabilities = Capabilities()

    def __init__(
        self,
        base: str,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._base = _checked(base)
        self._clock = clock
        self._secrets = (api_key,) if api_key else ()
        self._client = httpx.Client(
            timeout=timeout,
            headers={"x-api-key": api_key} if api_key else {},
            transport=DeadlineTransport(self._base),
            # Proxies and logins of the environment would be settings that nobody passed in.
            trust_env=False,
        )

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. The text is cut out of the answer, never parsed and written again."""
        if not _may_be_id(run_id):
            raise NotFound("no such run", where=f"run {run_id[:60]!a}")
        response = self._get(run_path(run_id))
        text, _ = self._data(response, "{")
        if self._id_of(text) != run_id:
            raise self._refused(f"the run {run_id}", "another run")
        self._prove(run_id, tenant)
        incomplete = response.headers.get("x-runspan-incomplete", "")
        return Document(text.encode(), (incomplete,) if incomplete else ())

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``; runspan's own spans only."""
        content = self._get(f"/api/v1/traces/{trace_id.hex()}").content
        try:
            return [span for span in read_spans(content) if ROLE in span.attributes()]
        except PayloadError as error:
            raise self._refused("a trace in OTLP/JSON", error.got) from None

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``. The API takes ``since`` and ``stuckAfter`` as lengths of time, so their edges move with
        the clock. QueryUnsupported when the server does not know ``stuckAfter``, which is an extension."""
        parameters: dict[str, Any] = {"limit": query.limit}
        if query.workflow_id is not None:
            parameters["workflowId"] = query.workflow_id
        if query.status is not None:
            parameters["status"] = query.status
        if query.since is not None:
            parameters["since"] = self._since(query.since)
        if query.cursor is not None:
            parameters["cursor"] = query.cursor.token()
        if query.stuck_before is not None:
            parameters["stuckAfter"] = f"{max(1, (self._clock() - query.stuck_before) // SECOND)}s"
        try:
            answer = self._get("/api/v1/runs", parameters)
        except UnicodeEncodeError:
            return Page([])  # a lone surrogate is in no stored text
        text, meta = self._data(answer, "[")
        if parameters.get("stuckAfter") != meta.stuck_after:
            raise QueryUnsupported(
                where=self._base,
                expected="a server that tells stuck runs apart",
                got="one that does not know stuckAfter",
                hint="bring that runspan server up to date; the platform's own API has no stuck runs",
            )
        items = [element.value_text.encode() for element in elements(text, 0)]
        ids = [self._id_of(item.decode()) for item in items]
        if ids and query.tenant:
            self._prove(ids[0], query.tenant)
        return Page(items, self._next(query.cursor, meta), tuple(meta.partial))

    def check(self) -> None:
        """See ``TraceReader``."""
        self._get("/readyz")

    def close(self) -> None:
        """See ``TraceReader``."""
        self._client.close()

    def _next(self, cursor: Cursor | None, meta: _Meta) -> Cursor | None:
        """Where the next page begins: after this one, or a caller that follows would never come to an end."""
        if not meta.has_more or not meta.cursor:
            return None
        try:
            following = Cursor.parse(meta.cursor)
        except QueryError as error:
            raise self._refused("a cursor of runspan", error.got) from None
        if cursor is not None and (following.time, following.run_id) >= (cursor.time, cursor.run_id):
            raise self._refused("a cursor after that of the page before", "one that does not move on")
        return following

    def _prove(self, run_id: str, tenant: str) -> None:
        """A trace id follows from tenant and run id, so it tells whose run the server answered with."""
        if not tenant:
            return
        text, _ = self._data(self._get(run_path(run_id) + "/trace"), "{")
        try:
            trace_id = msgspec.json.decode(text, type=_TraceLink).trace_id
        except (msgspec.MsgspecError, RecursionError) as error:
            raise self._refused("a run's trace id", sanitize_message(str(error), self._secrets)) from None
        if trace_id != run_ids(run_id, tenant).trace_id.hex():
            raise Forbidden(
                where=self._base,
                expected=f"runs of {tenant}",
                got="those of another company",
                hint="the API key decides whose runs are answered: use that company's key, or leave --tenant away",
            )

    def _get(self, path: str, parameters: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._client.get(self._base + path, params=parameters)
        except httpx.InvalidURL:
            raise too_long(self._base) from None
        except httpx.HTTPError as error:
            raise BackendUnreachable(
                where=self._base,
                expected="an answer",
                got=sanitize_message(str(error), self._secrets) or type(error).__name__,
                hint="is the server running? start one with: runspan serve",
            ) from None
        if response.is_success:
            return response
        raise self._error(response)

    def _error(self, response: httpx.Response) -> RunspanError:
        try:
            fault = msgspec.json.decode(response.content, type=_ErrorBody).error
        except (msgspec.MsgspecError, RecursionError):
            fault = _ErrorInfo("", response.reason_phrase)
        words = sanitize_message(fault.message, self._secrets)
        if response.status_code == 429:
            asked = parse_retry_after(response.headers)
            seconds = DEFAULT_RETRY_AFTER if asked is None else asked
            return RateLimited(f"{self._base}: {words}", retry_after=seconds, hint=f"ask again in {seconds:g} seconds")
        kind = _CLASSES.get(fault.code)
        if kind is None:
            return BackendRefused(
                words, where=self._base, got=f"HTTP {response.status_code}", hint="is this a runspan server?"
            )
        hint = "set RUNSPAN_API_KEY, or --api-key-file" if kind is Unauthorized else ""
        return kind(words, where=self._base, hint=hint)

    def _data(self, response: httpx.Response, opening: str) -> tuple[str, _Meta]:
        """The text of ``data`` as it stands in the answer, and ``meta``. opening: how the text must begin."""
        got = "another answer"
        try:
            text = response.content.decode()
            start = skip_space(text, 0)
            if text.startswith("{", start):
                answer = {member.key: member.value_text for member in members(text, start)}
                data = answer.get("data", "")
                if data.startswith(opening):
                    return data, msgspec.json.decode(answer.get("meta", "{}"), type=_Meta)
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            got = sanitize_message(str(error), self._secrets)
        raise self._refused("the platform's API", got)

    def _id_of(self, text: str) -> str:
        """The id of a run document or summary; BackendRefused when it is neither."""
        if text.startswith("{"):
            for member in members(text, 0):
                if member.key == "id" and member.value_text.startswith('"'):
                    run_id = string_value(member.value_text)
                    if _may_be_id(run_id):
                        return run_id
        raise self._refused("runs with their ids", "something else")

    def _refused(self, expected: str, got: str) -> BackendRefused:
        return BackendRefused(where=self._base, expected=expected, got=got, hint="is this a runspan server?")

    def _since(self, edge: int) -> str:
        """The edge as minutes before now, rounded up so that nothing is missed, or as days when they are many."""
        minutes = max(1, -(-(self._clock() - edge) // (60 * SECOND)))
        return f"{minutes}m" if minutes < 1_000_000 else f"{-(-minutes // 1440)}d"


def run_path(run_id: str) -> str:
    """The path of a run. Dots are encoded as well: clients take ``..`` for the folder above."""
    return f"/api/v1/runs/{quote(run_id, safe='').replace('.', '%2E')}"


def _may_be_id(run_id: str) -> bool:
    try:
        return 0 < len(run_id.encode()) <= MAX_RUN_ID_BYTES
    except UnicodeEncodeError:
        return False


def _checked(base: str) -> str:
    """The base URL without what the API's own paths add. SettingError when it is none, or holds a secret."""
    try:
        url = httpx.URL(base)
    except (httpx.InvalidURL, ValueError):
        raise SettingError(where="backend", expected="http://HOST:PORT", got="a URL that cannot be read") from None
    if url.userinfo:
        raise SettingError(
            where="backend", expected="a URL without a login", got="one with it", hint="put the key in RUNSPAN_API_KEY"
        )
    if url.query or url.fragment:
        got = f"{redact_url(base)!r} with a query or fragment"
        raise SettingError(where="backend", expected="http://HOST:PORT", got=got)
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise SettingError(where="backend", expected="http://HOST:PORT", got=repr(redact_url(base)))
    validate_host("backend", base)
    return str(url).rstrip("/").removesuffix("/api/v1")
