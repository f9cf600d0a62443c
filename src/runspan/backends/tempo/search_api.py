"""Tempo's search API: a ``RunQuery`` as TraceQL, the response, and a search of one range of time that misses nothing.

Tempo evaluates the fragment of a trace in each block alone, so a condition on a status or a workflow also matches
revision spans that a newer one in another fragment supersedes. The queries below therefore also select every revision
span that could supersede one that matches, as far as that span alone shows it, and group by revision, which makes Tempo
return each of them.

Tempo truncates a response at the limit, and the traces that it keeps are ordered by the start of their fragments only.
So a response counts only when it holds fewer traces than the limit; otherwise a shorter range is searched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import msgspec

from runspan.backends.remote.client import RemoteClient
from runspan.codec.attributes import encode_value
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    NON_CANONICAL,
    REVISION,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    ROOT_REVISION,
    RUN_FIELDS,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    TENANT,
)
from runspan.contracts import RunQuery
from runspan.errors import BackendRefused, QueryUnsupported
from runspan.http.client import Response
from runspan.model.document import SUMMARY_MEMBERS, TERMINAL_RUN_STATUSES
from runspan.model.span import UNSET, Pairs, Span, Value, to_plain

SECOND: Final = 1_000_000_000
SPAN_ID_DIGITS: Final = 16
_TRACE_ID_DIGITS: Final = 32


# TraceQL.

_FIELDS: Final = {field.member: field for field in RUN_FIELDS}
_SUMMARY_KEYS: Final = tuple(
    key
    for member in SUMMARY_MEMBERS
    if member != "id"
    for key in (_FIELDS[member].key, _FIELDS[member].key + NON_CANONICAL)
)
SELECTED: Final = (ROLE, REVISION, RUN_ID, TENANT, DIGEST, STEP_COUNT, MANIFEST, *_SUMMARY_KEYS)
"""The attributes that a list item is made from, and those that name the step spans it needs."""

_REVISION_SPANS: Final = f'(span.{ROLE} = "{ROLE_RUN}" || span.{ROLE} = "{ROLE_REVISION}")'
_STEP_SPANS: Final = f'{{ span.{ROLE} = "{ROLE_STEP}" }}'
_PIPELINE: Final = (
    f"| by(span.{REVISION}) | select({', '.join(f'span.{key}' for key in SELECTED)}) with(most_recent=true)"
)
CHANGED_AFTER_END: Final = f"span.{REVISION} > {ROOT_REVISION}"
"""Revision spans of runs that changed after their end."""
WITHOUT_START: Final = f"span.{RUN_TABLE.start.key}{NON_CANONICAL} != nil"
"""Revision spans of documents without a usable start, which may sort elsewhere than where their span lies."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')
_LEXER_BUFFER: Final = 1024
"""Bytes."""
_MARGIN: Final = 16
"""A character of several bytes at the end of the buffer moves where the next one begins."""


def search_text(query: RunQuery, *conditions: str, ended: bool = True) -> str:
    """Return the TraceQL of the revision spans that the query may list, with the step spans of their traces.

    The ids of the step spans prove that the run is complete.

    - conditions: further conditions on every revision span.
    - ended: whether to include the run spans of runs that may have had the status before.

    Raise UnicodeEncodeError when no stored text can equal a text of the query.
    """
    # The reader filters runs without a tenant: Tempo finds only some of the spans where a key is ``= nil``.
    terms = [_REVISION_SPANS, *([_equal(TENANT, query.tenant)] if query.tenant else ()), *conditions]
    filters = _filters(query, ended=ended)
    if filters:
        terms.append(f"({filters} || {CHANGED_AFTER_END})")
    revision_spans = f"{{ {' && '.join(terms)} }}"
    return pad_tokens(f"({revision_spans} || ({revision_spans} && {_STEP_SPANS})) {_PIPELINE}")


def pad_tokens(text: str) -> str:
    """Return the query with white space wherever Tempo's lexer fills its buffer.

    The lexer looks ahead with a copy of itself. When the copy fills the buffer, the lexer loses what the copy has read,
    and the query seems to end there. Inside a string the lexer does not look ahead.
    """
    parts: list[str] = []
    length = 0
    for token in _TOKEN.findall(text):
        size, offset = len(token.encode()), length % _LEXER_BUFFER
        if token[0] != '"':
            padding = 0
            if offset + size + _MARGIN > _LEXER_BUFFER:
                padding = _LEXER_BUFFER - offset + _MARGIN
            elif offset < _MARGIN and length > _MARGIN:
                padding = _MARGIN - offset
            parts.append(" " * padding)
            length += padding
        parts.append(token + " ")
        length += size + 1
    return "".join(parts)


def may_have_ended(query: RunQuery) -> bool:
    """Return whether revision spans of the status are usually superseded: a run leaves it when it goes on or ends."""
    return any(status not in TERMINAL_RUN_STATUSES for status in query.statuses)


def quote(text: str) -> str:
    """Return the text as a TraceQL string: JSON's escapes are Go's, except that Go rejects a bare byte order mark."""
    return msgspec.json.encode(text).decode().replace("\ufeff", "\\ufeff")


def _filters(query: RunQuery, *, ended: bool) -> str:
    workflow = "" if query.workflow_id is None else _member("workflow_id", query.workflow_id)
    if not query.statuses:
        return workflow
    terms = [_member("status", status) for status in query.statuses]
    status = terms[0] if len(terms) == 1 else f"({' || '.join(terms)})"
    both = f"({workflow} && {status})" if workflow else status
    if not ended or not may_have_ended(query):
        return both
    run_span = f'span.{ROLE} = "{ROLE_RUN}"'
    return f"{both} || ({workflow} && {run_span})" if workflow else f"{both} || {run_span}"


def _member(member: str, value: str) -> str:
    """Return the condition that a revision span has this value, in whichever attributes the field table puts it."""
    pairs: Pairs = []
    encode_value(pairs, _FIELDS[member], value)
    terms = [_equal(key, to_plain(encoded)) for key, encoded in pairs]
    return terms[0] if len(terms) == 1 else f"({' && '.join(terms)})"


def _equal(key: str, value: object) -> str:
    return f"span.{key} = {quote(value) if isinstance(value, str) else value}"


# The response.


class _ValueJson(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    int_value: str | int | None = None


class _AttributeJson(msgspec.Struct):
    key: str
    value: _ValueJson


class _SpanJson(
    msgspec.Struct, rename={"span_id": "spanID", "start": "startTimeUnixNano", "duration": "durationNanos"}
):
    span_id: str = ""
    name: str = ""
    start: str = "0"
    duration: str = "0"
    attributes: list[_AttributeJson] = []


class _SpanSetJson(msgspec.Struct):
    spans: list[_SpanJson] = []


class _TraceJson(msgspec.Struct, rename={"trace_id": "traceID", "start": "startTimeUnixNano", "span_sets": "spanSets"}):
    trace_id: str
    start: str = "0"
    span_sets: list[_SpanSetJson] = []


class _MetricsJson(msgspec.Struct, rename="camel"):
    completed_jobs: int = 0
    total_jobs: int = 0


class _SearchJson(msgspec.Struct):
    traces: list[_TraceJson] = []
    metrics: _MetricsJson = msgspec.field(default_factory=_MetricsJson)


@dataclass(slots=True)
class Candidate:
    """A trace that a search found."""

    trace_id: bytes
    start: int
    """Nanoseconds: of the earliest fragment found."""
    revision_spans: list[Span] = field(default_factory=list)
    """One of each revision that matched."""
    step_ids: set[str] = field(default_factory=set)
    """The ids of the step spans that the response has, in hex."""

    @property
    def newest(self) -> Span:
        """The revision span of the highest revision found."""
        return max(self.revision_spans, key=_revision)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The content of a search response."""

    candidates: list[Candidate]
    traces: int
    """How many traces were returned, with a revision span or without."""
    starts: list[int]
    """The starts of all these traces in nanoseconds, descending."""
    missing: int
    """How many parts of its data Tempo did not search."""


def read_search(body: bytes) -> SearchResult:
    """Return the content of a response of ``/api/search``; raise ValueError when it is none."""
    response = msgspec.json.decode(body, type=_SearchJson)
    candidates = [_candidate(trace) for trace in response.traces]
    return SearchResult(
        [candidate for candidate in candidates if candidate.revision_spans],
        len(candidates),
        sorted((candidate.start for candidate in candidates), reverse=True),
        max(response.metrics.total_jobs - response.metrics.completed_jobs, 0),
    )


def _candidate(trace: _TraceJson) -> Candidate:
    # Search strips the leading zeros of ids.
    candidate = Candidate(bytes.fromhex(trace.trace_id.zfill(_TRACE_ID_DIGITS)), int(trace.start))
    for span_set in trace.span_sets:
        has_revision_span = False
        for raw in span_set.spans:
            role = _role(raw)
            if role == ROLE_STEP:
                candidate.step_ids.add(raw.span_id.zfill(SPAN_ID_DIGITS))
            elif role in (ROLE_RUN, ROLE_REVISION) and not has_revision_span:
                has_revision_span = True
                candidate.revision_spans.append(_span(candidate.trace_id, raw))
    return candidate


def _role(raw: _SpanJson) -> str | None:
    for attribute in raw.attributes:
        if attribute.key == ROLE:
            return attribute.value.string_value
    return None


def _span(trace_id: bytes, raw: _SpanJson) -> Span:
    start = int(raw.start)
    own: list[tuple[str, Value]] = []
    for attribute in raw.attributes:
        value = attribute.value
        if value.int_value is not None:
            own.append((attribute.key, int(value.int_value)))
        elif value.string_value is not None:
            own.append((attribute.key, value.string_value))
    return Span(
        trace_id=trace_id,
        span_id=bytes.fromhex(raw.span_id.zfill(SPAN_ID_DIGITS)),
        parent_id=b"",
        name=raw.name,
        kind=0,
        start=start,
        end=start + int(raw.duration),
        status=UNSET,
        message="",
        shared=(),
        own=own,
    )


def _revision(span: Span) -> int:
    revision = span.attributes().get(REVISION)
    return revision if type(revision) is int else -1


# Searching a range of time.

EARLIEST: Final = 1
LATEST: Final = 2**32 - 1
"""The first and last second that a search can name. Zero would mean: no range."""

_MAX_LIMIT: Final = 262_144
_MAX_SPANS: Final = 20
"""Spans of one trace in a response: the steps of usual runs. A longer run is read once, which costs Tempo less time."""
_MAX_RESPONSE_SPANS: Final = 10_000
"""Spans of one response, of about 600 bytes each."""
_RANGE_REFUSED: Final = re.compile(r"range specified by start and end exceeds (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_LIMIT_REFUSED: Final = re.compile(r"limit \d+ exceeds max limit (\d+)")
_SPANS_REFUSED: Final = re.compile(r"spans per span set exceeds (\d+)")


@dataclass(frozen=True, slots=True)
class SearchWindow:
    """Everything found in the seconds from ``low`` to ``high``."""

    low: int
    high: int
    candidates: list[Candidate]
    missing: int
    """How many parts of its data Tempo did not search."""
    limit: int
    """The limit that was high enough."""


class WindowSearcher:
    """Searches one Tempo, and remembers which ranges, limits and numbers of spans it refuses."""

    def __init__(self, http: RemoteClient) -> None:
        self._http = http
        self._max_range: int | None = None
        self._max_limit = _MAX_LIMIT
        self._max_spans = _MAX_SPANS

    @property
    def limited(self) -> bool:
        """Whether the server is known to refuse wide ranges."""
        return self._max_range is not None

    def newest_window(self, text: str, low: int, high: int, limit: int, enough: int) -> SearchWindow | None:
        """Return the newest part of a range that could be searched completely: it ends at ``high``.

        - limit: how many traces to ask for at first.
        - enough: how many of the newest traces are sufficient.

        Return None when the server turned out to be ``limited`` just now.
        """
        while True:
            max_range = self._max_range
            if max_range is not None:
                low = max(low, high - max_range)
            limit = min(limit, self._max_limit)
            found = self._search(text, low, high, limit)
            if found is None:
                if max_range != self._max_range:
                    return None
                continue
            if found.traces < limit:
                return SearchWindow(low, high, found.candidates, found.missing, limit)
            split = found.starts[min(enough, len(found.starts) - 1)] // SECOND
            if low < split < high:
                low = split
            elif limit >= self._max_limit:
                # So many traces start in the lowest second, or before it and reach into it.
                if high - low <= 1:
                    raise self._too_many(limit)
                low = (low + high) // 2
            limit *= 4

    def complete_window(self, text: str, low: int, high: int, limit: int) -> SearchWindow | None:
        """Return a complete range when one search finds fewer traces in it than the limit; else None."""
        limit = min(limit, self._max_limit)
        if self._max_range is not None and high - low > self._max_range:
            return None
        found = self._search(text, low, high, limit)
        if found is None or found.traces >= limit:
            return None
        return SearchWindow(low, high, found.candidates, found.missing, limit)

    def _search(self, text: str, low: int, high: int, limit: int) -> SearchResult | None:
        """Return None when the server refuses the range, the limit or the number of spans; remember what it allows."""
        parameters: dict[str, str | int] = {
            "q": text,
            "start": low,
            "end": max(high, low + 1),
            "limit": limit,
            "spss": max(1, min(self._max_spans, _MAX_RESPONSE_SPANS // limit)),
        }
        response = self._http.get("/api/search", parameters, accept_statuses=(400, 422))
        if response.status != 200:
            self._learn_limits(response)
            return None
        try:
            return read_search(response.content)
        except (ValueError, RecursionError) as error:
            raise BackendRefused(
                where=self._http.name, expected="Tempo's search response", got=str(error), hint="is this a Tempo?"
            ) from None

    def _learn_limits(self, response: Response) -> None:
        text = response.text()
        refused = _RANGE_REFUSED.search(text)
        if refused is not None:
            hours, minutes, seconds = (int(part or 0) for part in refused.groups())
            allowed = hours * 3600 + minutes * 60 + seconds
            allowed -= min(3600, allowed // 10)
            if allowed > 1 and (self._max_range is None or allowed < self._max_range):
                self._max_range = allowed
                return
        refused = _LIMIT_REFUSED.search(text)
        if refused is not None and 1 < int(refused[1]) < self._max_limit:
            self._max_limit = int(refused[1])
            return
        refused = _SPANS_REFUSED.search(text)
        if refused is not None and 0 < int(refused[1]) < self._max_spans:
            self._max_spans = int(refused[1])
            return
        raise self._http.refused(response)

    def _too_many(self, limit: int) -> QueryUnsupported:
        return QueryUnsupported(
            where=self._http.name,
            expected=f"fewer than {limit} runs within one second",
            got="more",
            hint="name a workflow or a status, or raise query_frontend.search.max_result_limit",
        )
