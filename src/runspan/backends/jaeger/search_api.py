"""One search of Jaeger, by API v3, or by the legacy API where v3 ignores attributes; and what its store accepts.

Jaeger does not say which storage it has. Elasticsearch and OpenSearch show themselves: they compare values of
attributes as regular expressions, so they refuse one that is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import msgspec

from runspan.backends.jaeger.response_cache import ResourceSpanCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_legacy_traces, read_error
from runspan.backends.remote.client import Parameters, RemoteClient
from runspan.codec.fields import ROLE
from runspan.errors import BackendBusy, BackendError, BackendRefused, QueryUnsupported
from runspan.http.client import Response
from runspan.model.timestamps import MAX_NS

END: Final = MAX_NS // 1000 + 1
"""Microseconds since 1970: after the last that a span can have."""
WRONG_PATH: Final = "is this the address of Jaeger's query API, with its base path?"
_BUSY: Final = re.compile("status code: (429|503)")
"""In Jaeger's error: Elasticsearch or OpenSearch is overloaded, or an index is not ready yet."""
_PANICS: Final = 3
"""How many requests in a row may meet a panic of Jaeger."""
_ANY_DURATION: Final = "2562047h"
"""The longest that Jaeger can read. Without it, Elasticsearch and OpenSearch find nothing longer than a day."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DAY: Final = 86_400_000_000
"""Microseconds."""
LIMITED_WIDTH: Final = 100 * DAY
"""The widest range that is searched at once in a store that refuses wide ones. Elasticsearch and OpenSearch have an
index for each day, and refuse a URL with the names of more than about 170."""


class DepthRefused(QueryUnsupported):
    """The store does not search that deep: the memory storage refuses more than ``max_traces``."""


SearchApi = Callable[[str, Mapping[str, str], int, int, int, int], list[FoundSpan]]
"""One of the two search APIs: called with service, attributes, shortest, lo, hi and depth.

It returns the spans of at most ``depth`` complete traces. All traces that have a span of the service with these
attributes, ``shortest`` microseconds long or longer, which starts in ``lo <= microsecond < hi`` match; and some others,
since no store matches exactly that. It raises DepthRefused when the depth is too high, and BackendRefused when the
store fails.
"""


def _search_v3(
    http: RemoteClient,
    cache: ResourceSpanCache,
    service: str,
    attributes: Mapping[str, str],
    shortest: int,
    lo: int,
    hi: int,
    depth: int,
) -> list[FoundSpan]:
    """Search by API v3, which compares attributes since Jaeger 2.19."""
    parameters: dict[str, str | int] = {
        "query.service_name": service,
        "query.start_time_min": _timestamp(lo),
        # Both ends are inclusive. One microsecond more than needed also finds what Badger omits from the last one:
        # trace ids that begin with ff.
        "query.start_time_max": _timestamp(hi),
        "query.search_depth": depth,
        # Without this Jaeger adjusts the traces, and its memory storage keeps the change.
        "query.raw_traces": "true",
    }
    if shortest:
        parameters["query.duration_min"] = f"{shortest}us"
        parameters["query.duration_max"] = _ANY_DURATION
    if attributes:
        parameters["query.attributes"] = msgspec.json.encode(attributes).decode()
    response = get_stored(http, "/api/v3/traces", parameters)
    if response.status == 404 and read_error(response.content) is not None:
        return []
    return _decode(http, response, cache.find)


def _search_legacy(
    http: RemoteClient, service: str, attributes: Mapping[str, str], shortest: int, lo: int, hi: int, depth: int
) -> list[FoundSpan]:
    """Search by the legacy API, which has microseconds only and was removed after Jaeger 2.20."""
    parameters: dict[str, str | int] = {
        "service": service,
        "start": lo,
        "end": min(hi, END - 1),
        "limit": depth,
        "raw": "true",
    }
    if shortest:
        parameters["minDuration"] = f"{shortest}us"
        parameters["maxDuration"] = _ANY_DURATION
    if attributes:
        parameters["tags"] = msgspec.json.encode(attributes).decode()
    response = get_stored(http, "/api/traces", parameters)
    return _decode(http, response, find_legacy_traces)


def get_stored(http: RemoteClient, path: str, parameters: Parameters) -> Response:
    """Return the response to a request for stored spans, also with HTTP 404 or 500.

    Jaeger's memory storage copies traces without its lock, and panics when one is written meanwhile: HTTP 500 with an
    empty body, which the next request need not meet.
    """
    for _ in range(_PANICS):
        response = http.get(path, parameters, accept_statuses=(404, 500))
        if response.status != 500 or response.content:
            break
    return response


def storage_error(http: RemoteClient, response: Response) -> BackendError:
    """Return the error for HTTP 500."""
    if _BUSY.search(read_error(response.content) or ""):
        hint = "the storage is overloaded, or a new index is not ready yet; retry later"
        return BackendBusy(f"HTTP {response.status}: {response.text()}", where=http.name, retry_after=1, hint=hint)
    return http.refused(response, "Jaeger's log says why its storage failed")


def detect_search_api(http: RemoteClient, cache: ResourceSpanCache) -> SearchApi:
    """Return the search API of this Jaeger. cache: decodes the responses of API v3.

    Trace summaries and attributes in a search came with the same release; an API v3 without attributes would ignore
    them silently. A Jaeger with summaries refuses a request without times in JSON, and changes nothing in the store.
    """
    response = http.get("/api/v3/trace-summaries", accept_statuses=(400, 404))
    if response.status == 400 and read_error(response.content) is not None:
        return partial(_search_v3, http, cache)
    if response.status == 400:
        raise http.refused(response, WRONG_PATH)
    return partial(_search_legacy, http)


def _decode(http: RemoteClient, response: Response, decode: Callable[[bytes], list[FoundSpan]]) -> list[FoundSpan]:
    if response.status == 500:
        message = read_error(response.content)
        if message is not None and "search depth" in message:
            raise DepthRefused(
                where=http.name,
                expected="a store that searches for more than one trace",
                got=message,
                hint="raise max_traces of Jaeger's memory storage",
            )
        raise storage_error(http, response)
    if response.status != 404:
        try:
            return decode(response.content)
        except MalformedResponse:
            pass
    raise http.refused(response, WRONG_PATH)


def _timestamp(us: int) -> str:
    if us >= END:
        return "2262-04-11T23:47:16.854775807Z"
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# The store.


@dataclass(slots=True)
class StoreLimits:
    """Which searches a store accepts, as far as earlier ones showed it."""

    max_depth: int = 0
    """Traces; 0 when unknown."""
    is_elastic: bool = False
    """Whether it is Elasticsearch or OpenSearch. These compare values as regular expressions, and find of a trace only
    the spans near the range that is searched, or by its id those of the last ``max_span_age``."""
    max_width: int | None = None
    """Microseconds of a range; None when the store accepts every range, also one in the future."""

    def ranges(self, now: int, lookback: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of microseconds, newest first, which together are all that lists look at.

        ``max_width`` may become smaller meanwhile. now, lookback: microseconds.
        """
        hi, lowest = (END, ELASTIC_START) if self.max_width is None else (now + DAY, now - lookback)
        while hi > lowest:
            lo = max(lowest, hi - (self.max_width or END))
            yield lo, hi
            hi = lo


def detect_limits(search: SearchApi, service: str, now: int) -> StoreLimits:
    """Return what a store accepts. now: microseconds since 1970.

    Elasticsearch and OpenSearch refuse a value that is no regular expression, and a range of centuries, because its
    indices, one for each day, are named in a URL; with aliases they accept the range. A store that fails for one day
    too is not limited but broken: raise BackendRefused.
    """
    try:
        search(service, {ROLE: "("}, 0, 0, END, 1)
    except BackendRefused:
        search(service, {}, 0, now, now + DAY, 1)
    else:
        return StoreLimits()
    try:
        search(service, {}, 0, now + DAY, END, 1)
    except BackendRefused:
        width = LIMITED_WIDTH
    else:
        return StoreLimits(is_elastic=True)
    while width > DAY:
        try:
            search(service, {}, 0, now + DAY - width, now + DAY, 1)
            break
        except BackendRefused:
            width //= 2  # the names of its indices are long
    return StoreLimits(is_elastic=True, max_width=width)


ELASTIC_START: Final = 365 * DAY
"""Microseconds since 1970, from which on Elasticsearch and OpenSearch can be searched. Jaeger looks for the spans of a
trace from ``max_trace_duration`` before the range on, and finds none when that is before 1970."""
_MAX_INDEXED_BYTES: Final = 256
"""Longer values of attributes are not in the indices of Elasticsearch and OpenSearch (``ignore_above``, in UTF-16)."""
_PUNCTUATION: Final = re.compile(r"[!-/:-@\[-`{-~]")


def patterns(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return regular expressions of Lucene for exactly these values, without those that are not indexed."""
    return {
        key: _PUNCTUATION.sub(r"\\\g<0>", value)
        for key, value in attributes.items()
        if len(value.encode()) <= _MAX_INDEXED_BYTES
    }
