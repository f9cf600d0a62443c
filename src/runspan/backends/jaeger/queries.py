"""How traces are searched in Jaeger: by its API v3, or by the older API where v3 has no attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import msgspec

from runspan.backends.jaeger.legacy_responses import find_legacy_traces
from runspan.backends.jaeger.response_cache import ResourceSpanCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, read_trace, refusal
from runspan.backends.remote.client import RemoteClient
from runspan.errors import BackendRefused
from runspan.http.client import Response
from runspan.model.span import Span
from runspan.model.timestamps import MAX_NS

END: Final = MAX_NS // 1000 + 1
"""Microseconds since 1970: after the last that a span can hold."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WRONG_PATH: Final = "is this the address of Jaeger's query API, with its base path?"


class DepthRefused(Exception):
    """The store does not search that deep: its memory holds at most ``max_traces``."""


class SearchApi(Protocol):
    """One way of searching."""

    def __call__(self, service: str, attributes: Mapping[str, str], lo: int, hi: int, depth: int) -> list[FoundSpan]:
        """The spans of at most ``depth`` whole traces that have a span of the service with these attributes that starts
        in ``lo <= microsecond < hi``; and of some more traces, since no store answers exactly that.

        DepthRefused when the store does not go that deep.
        """
        ...


class V3Search:
    """Search by API v3, which compares attributes since 2.19."""

    def __init__(self, http: RemoteClient, pieces: ResourceSpanCache) -> None:
        self._http = http
        self._pieces = pieces

    def __call__(self, service: str, attributes: Mapping[str, str], lo: int, hi: int, depth: int) -> list[FoundSpan]:
        parameters: dict[str, str | int] = {
            "query.service_name": service,
            "query.start_time_min": _moment(lo),
            # Both ends are taken in. Asking one microsecond more than wanted also finds what Badger leaves out of the
            # last one: trace ids that begin with ff.
            "query.start_time_max": _moment(hi),
            "query.search_depth": depth,
            # Without this Jaeger adjusts what it answers, and its memory store keeps the change.
            "query.raw_traces": "true",
        }
        if attributes:
            parameters["query.attributes"] = msgspec.json.encode(attributes).decode()
        answer = self._http.get("/api/v3/traces", parameters, accept_statuses=(404, 500))
        if answer.status == 404:
            if refusal(answer.content) is None:
                raise self._http.refused(answer, _WRONG_PATH)
            return []
        if answer.status != 200:
            raise _refused(self._http, answer)
        with _readable(self._http, answer):
            return self._pieces.find(answer.content)


class LegacySearch:
    """Search by the older API, which has whole microseconds only and was removed after 2.20."""

    def __init__(self, http: RemoteClient) -> None:
        self._http = http

    def __call__(self, service: str, attributes: Mapping[str, str], lo: int, hi: int, depth: int) -> list[FoundSpan]:
        parameters: dict[str, str | int] = {"service": service, "start": lo, "end": min(hi, END - 1), "limit": depth}
        parameters["raw"] = "true"
        if attributes:
            parameters["tags"] = msgspec.json.encode(attributes).decode()
        answer = self._http.get("/api/traces", parameters, accept_statuses=(500,))
        if answer.status != 200:
            raise _refused(self._http, answer)
        with _readable(self._http, answer):
            return find_legacy_traces(answer.content)


def detect_search_api(http: RemoteClient, pieces: ResourceSpanCache) -> SearchApi:
    """The way of searching that this Jaeger knows. pieces: reads the answers, and knows those of earlier searches.

    Trace summaries and attributes in a search came with the same release, and one without attributes would ignore
    them silently. Asked without times, a Jaeger that has summaries refuses in JSON and changes nothing.
    """
    answer = http.get("/api/v3/trace-summaries", accept_statuses=(400, 404))
    if answer.status == 400 and refusal(answer.content) is not None:
        return V3Search(http, pieces)
    if answer.status == 400:
        raise http.refused(answer, _WRONG_PATH)
    return LegacySearch(http)


def get_trace(http: RemoteClient, trace_id: bytes) -> list[Span]:
    """All spans of a trace as stored; none when it is not known."""
    answer = http.get(f"/api/v3/traces/{trace_id.hex()}", {"raw_traces": "true"}, accept_statuses=(404,))
    if answer.status == 404:
        if refusal(answer.content) is None:
            raise http.refused(answer, _WRONG_PATH)
        return []
    with _readable(http, answer):
        spans = read_trace(answer.content)
    return [span for span in spans if span.trace_id == trace_id]


@contextmanager
def _readable(http: RemoteClient, answer: Response) -> Iterator[None]:
    try:
        yield
    except MalformedResponse:
        raise http.refused(answer, _WRONG_PATH) from None


def _refused(http: RemoteClient, answer: Response) -> Exception:
    message = refusal(answer.content)
    if message is not None and "search depth" in message:
        return DepthRefused(message)
    error: BackendRefused = http.refused(answer, "Jaeger's log says why its storage failed")
    return error


def _moment(us: int) -> str:
    if us >= END:
        return "2262-04-11T23:47:16.854775807Z"
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
