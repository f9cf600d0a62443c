"""``RestReader``: the runs of another server that speaks the platform's REST API, read over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from runspan.contracts import Capabilities, Cursor, Document, Page, RunQuery
from runspan.errors import (
    BackendBusy,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    Forbidden,
    NotFound,
    QueryError,
    QueryUnsupported,
    RateLimited,
    RunspanError,
    SettingError,
    StoreError,
    TraceIncomplete,
    Unauthorized,
)
from runspan.fields import ROLE
from runspan.ids import run_ids
from runspan.otlp.json import read_spans
from runspan.scan import elements, members, skip_space, string_value
from runspan.span import Span
from runspan.times import SECOND

TIMEOUT: Final = 30.0
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


class _Fault(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Failure(msgspec.Struct):
    error: _Fault


class _TraceLink(msgspec.Struct, rename="camel"):
    trace_id: str


class RestReader:
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
        # Proxies and logins of the environment would be settings that nobody passed in.
        self._client = httpx.Client(timeout=timeout, headers={"x-api-key": api_key} if api_key else {}, trust_env=False)

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. The text is cut out of the answer, never parsed and written again."""
        response = self._get(run_path(run_id))
        text, _ = self._data(response, "{")
        self._prove(run_id, tenant)
        incomplete = response.headers.get("x-runspan-incomplete", "")
        return Document(text.encode(), (incomplete,) if incomplete else ())

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``; runspan's own spans only."""
        content = self._get(f"/api/v1/traces/{trace_id.hex()}").content
        return [span for span in read_spans(content) if ROLE in span.attributes()]

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
        text, meta = self._data(self._get("/api/v1/runs", parameters), "[")
        if parameters.get("stuckAfter") != meta.stuck_after:
            raise QueryUnsupported(
                where=self._base,
                expected="a server that tells stuck runs apart",
                got="one that does not know stuckAfter",
                hint="bring that runspan server up to date; the platform's own API has no stuck runs",
            )
        items = [element.value_text.encode() for element in elements(text, 0)]
        if items and query.tenant:
            self._prove(_id_of(items[0].decode()), query.tenant)
        more = meta.cursor if meta.has_more else None
        return Page(items, Cursor.parse(more) if more else None, tuple(meta.partial))

    def check(self) -> None:
        """See ``TraceReader``."""
        self._get("/readyz")

    def close(self) -> None:
        """See ``TraceReader``."""
        self._client.close()

    def _prove(self, run_id: str, tenant: str) -> None:
        """A trace id follows from tenant and run id, so it tells whose run the server answered with."""
        if not tenant:
            return
        text, _ = self._data(self._get(run_path(run_id) + "/trace"), "{")
        if msgspec.json.decode(text, type=_TraceLink).trace_id != run_ids(run_id, tenant).trace_id.hex():
            raise Forbidden(
                where=self._base,
                expected=f"runs of {tenant}",
                got="those of another company",
                hint="the API key decides whose runs are answered: use that company's key, or leave --tenant away",
            )

    def _get(self, path: str, parameters: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._client.get(self._base + path, params=parameters)
        except httpx.HTTPError as error:
            raise BackendUnreachable(
                where=self._base,
                expected="an answer",
                got=str(error) or type(error).__name__,
                hint="is the server running? start one with: runspan serve",
            ) from None
        if response.is_success:
            return response
        raise self._error(response)

    def _error(self, response: httpx.Response) -> RunspanError:
        try:
            fault = msgspec.json.decode(response.content, type=_Failure).error
        except msgspec.MsgspecError:
            fault = _Fault("", response.reason_phrase)
        if response.status_code == 429:
            after = response.headers.get("retry-after", "")
            seconds = float(after) if after.isdecimal() else 60.0
            return RateLimited(
                f"{self._base}: {fault.message}", retry_after=seconds, hint=f"ask again in {seconds:g} seconds"
            )
        kind = _CLASSES.get(fault.code)
        if kind is None:
            return BackendRefused(
                fault.message, where=self._base, got=f"HTTP {response.status_code}", hint="is this a runspan server?"
            )
        hint = "set RUNSPAN_API_KEY, or --api-key-file" if kind is Unauthorized else ""
        return kind(fault.message, where=self._base, hint=hint)

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
        except (ValueError, msgspec.MsgspecError) as error:
            got = str(error)
        raise BackendRefused(where=self._base, expected="the platform's API", got=got, hint="is this a runspan server?")

    def _since(self, edge: int) -> str:
        """The edge as minutes before now, rounded up so that nothing is missed, or as days when they are many."""
        minutes = max(1, -(-(self._clock() - edge) // (60 * SECOND)))
        return f"{minutes}m" if minutes < 1_000_000 else f"{-(-minutes // 1440)}d"


def run_path(run_id: str) -> str:
    """The path of a run. Dots are encoded as well: clients take ``..`` for the folder above."""
    return f"/api/v1/runs/{quote(run_id, safe='').replace('.', '%2E')}"


def _id_of(summary: str) -> str:
    return next(string_value(member.value_text) for member in members(summary, 0) if member.key == "id")


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
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise SettingError(where="backend", expected="http://HOST:PORT", got=repr(base))
    return str(url).rstrip("/").removesuffix("/api/v1")
