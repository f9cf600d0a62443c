"""Tempo's search API: a ``RunQuery`` as TraceQL, the response, and a search of one range of time that misses nothing.

Tempo evaluates the fragment of a trace in each block alone, so a condition also matches spans that a newer revision in
another fragment supersedes. A response truncated at the limit has the traces whose fragments start latest, which need
not be the runs that start latest: such a response only shows which range to search instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from runspan.backends.remote.client import RemoteClient
from runspan.backends.tempo.text_pattern import text_pattern
from runspan.codec import fields
from runspan.codec.attributes import run_template
from runspan.codec.semconv import ERROR_TYPE
from runspan.contracts import RunQuery
from runspan.errors import PARSE_ERRORS, BackendBusy, BackendRefused, QueryUnsupported
from runspan.http.client import Response
from runspan.model.document import SUMMARY_MEMBERS, TERMINAL_RUN_STATUSES
from runspan.model.span import UNSET, Span, Value
from runspan.model.timestamps import MAX_NS, MILLISECOND, SECOND

_SPAN_ID_DIGITS: Final = 16
_TRACE_ID_DIGITS: Final = 32


# TraceQL.

_FIELDS: Final = {field.member: field for field in fields.RUN_FIELDS}
_SUMMARY_FIELDS: Final = [_FIELDS[member] for member in SUMMARY_MEMBERS if member != "id"]
SELECTED: Final = (
    *(fields.REVISION, fields.RUN_ID, fields.TENANT, fields.DIGEST, fields.SUMMARY_DIGEST, *fields.LABEL_SETS),
    *(
        field.key + fields.NON_CANONICAL if field.kind in (fields.FieldKind.START, fields.FieldKind.END) else field.key
        for field in _SUMMARY_FIELDS
    ),
)
"""The attributes of a list item whose members have their canonical form. The role follows from the revision."""
_TIMES: Final = frozenset(key for key in SELECTED if key.endswith(fields.NON_CANONICAL))
"""Those of times that are not canonical. Few platforms write such times."""

_RUN_SPAN: Final = f'instrumentation:name = "{fields.SCOPE_RUN}"'
_REVISION_SPAN: Final = f'instrumentation:name = "{fields.SCOPE_REVISION}"'
_AFTER_END: Final = f"span.{fields.REVISION} > {fields.ROOT_REVISION}"
_WITHOUT_RUN_SPAN: Final = "max(duration) < 2ns"
"""Leaves out the fragments that have the run span as well, unless the run has no length: revision spans have none."""
_MOST_RECENT: Final = "with(most_recent=true)"
_BY_NAME: Final = "| by(name)"
_BY_VERSION: Final = "| by(span:id)"
"""Make Tempo return a span of each name or id, not only those of the fragment in which most spans match. With an
attribute ``by`` would cost several times as much: Tempo reads it for all spans of a block."""
_STATUS_CONDITIONS: Final = {
    "completed": "status = unset",
    "failed": "status = error",
}
"""Conditions on intrinsics, which cost a fraction of an attribute's. The reader filters the few others."""

_MAX_LABEL: Final = fields.MAX_ATTRIBUTE_BYTES // 4
"""Characters of a label that is an attribute under its usual name."""
_TEXT_FIELDS: Final = [
    field
    for field in (*fields.RUN_FIELDS, *fields.STEP_FIELDS)
    if field.kind is fields.FieldKind.PAYLOAD or field.member in ("workflow_id", "id", "name", "type")
]
_TEXT_NAMES: Final = (
    "statusMessage",
    *(
        f"span.{key}"
        for key in (
            *(fields.RUN_ID, fields.OPEN_STEPS, fields.RUN_EXTRA, fields.STEP_EXTRA),
            *(field.key for field in _TEXT_FIELDS),
            *(field.key + fields.NON_CANONICAL for field in _TEXT_FIELDS if field.kind is fields.FieldKind.LABEL),
        )
    ),
)
"""What is searched for a text."""
SEARCHES: Final = (
    f"ids, names and types of steps, and in errors and payloads of up to {fields.MAX_ATTRIBUTE_BYTES} bytes"
)
"""What of a run is searched for a text, in words."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')
_LEXER_BUFFER: Final = 1024
"""Bytes."""
_MARGIN: Final = 16
"""A character of several bytes at the end of the buffer moves where the next one begins."""


@dataclass(frozen=True, slots=True)
class SearchText:
    """The TraceQL of one query."""

    find: str
    """For the traces only."""
    select: str
    """For the traces and their list items. A run that has not ended may have other revisions too."""
    versions: str = ""
    """The same with all revisions, which costs more; "" if ``select`` has them."""


def _text(spans: str, by: str = "", versions: str = "", omitted: Collection[str] = ()) -> SearchText:
    """Return the texts for the spans of an expression.

    - by: how ``select`` groups the spans; versions likewise.
    - omitted: attributes that are not selected.
    """
    keys = [key for key in SELECTED if key not in omitted]
    select = f"| select({', '.join(f'span.{key}' for key in keys)}) {_MOST_RECENT}"
    return SearchText(
        pad_tokens(f"{spans} {_MOST_RECENT}"),
        pad_tokens(f"{spans} {by} {select}"),
        pad_tokens(f"{spans} {versions} {select}") if versions else "",
    )


def known_attributes(query: RunQuery) -> Sequence[tuple[str, Value]]:
    """Return the attributes of a list's runs that follow from its query. ``search_text`` does not select them.

    A wrong one, of a workflow whose name begins alike, is found by the digest of the list item.
    """
    return () if query.workflow_id is None else run_template(True, (query.workflow_id, None, None)).identity.pairs


def search_text(query: RunQuery, *, after_end: bool = False, times: bool = True) -> SearchText:
    """Return the search for the runs of a query and others, which the reader filters.

    - after_end: includes all runs that changed after their end.
    - times: selects times that are not canonical. Without them, the response does not prove a run that has some.

    Raise UnicodeEncodeError when no stored text can equal a text of the query.
    """
    tenant, terms = _tenant_terms(query), _summary_terms(query)
    omitted = {key for key, _ in known_attributes(query)} | (set() if times else _TIMES)
    is_terminal = bool(query.statuses) and {*query.statuses} <= {*TERMINAL_RUN_STATUSES}
    if query.is_by_end or is_terminal:
        ended = _all(_RUN_SPAN, *_workflow_terms(query, (True,)), *_status_terms(query), *terms)
        if not after_end:
            return _text(_spans(ended, *tenant), omitted=omitted)
        # Both operators have the same precedence.
        return _text(_spans(f"(({ended}) || ({_all(_REVISION_SPAN, _AFTER_END)}))", *tenant), _BY_VERSION)
    names = _workflow_terms(query, (True, False))
    if not is_unfinished(query):
        # The names of a workflow's run and revision spans cost less than their scopes and the names together.
        spans = _spans(*(names or [_any([_RUN_SPAN, _REVISION_SPAN])]), *tenant, *terms)
        return _text(spans, _BY_NAME, _BY_VERSION, omitted)
    spans = _spans(_any([_RUN_SPAN, _REVISION_SPAN]), *tenant, *names, *terms)
    return _text(spans if after_end else f"{spans} | {_WITHOUT_RUN_SPAN}", _BY_VERSION)


def changed_text(query: RunQuery) -> SearchText:
    """Return the search for the revisions of a tenant's runs that changed after their end."""
    return _text(_spans(_REVISION_SPAN, _AFTER_END, *_tenant_terms(query)), _BY_VERSION)


def ended_text(trace_ids: Iterable[bytes]) -> SearchText:
    """Return the search for those of these traces that have a run span."""
    return _text(_spans(_RUN_SPAN, _one_of(trace_ids)))


def versions_text(trace_ids: Iterable[bytes]) -> SearchText:
    """Return the search for the run and revision spans of these traces."""
    return _text(_spans(_any([_RUN_SPAN, _REVISION_SPAN]), _one_of(trace_ids)), _BY_VERSION)


def content_texts(text: str) -> list[str]:
    """Return searches that together find all runs that contain a text, and others, by what steps and payloads say.

    One search with all of their conditions takes Tempo ten times as long as all of them. The values that are too long
    for one attribute are left out, see ``SEARCHES``.
    """
    pattern = quote(text_pattern(text))
    return [pad_tokens(f"{_spans(f'{name} =~ {pattern}')} {_MOST_RECENT}") for name in _TEXT_NAMES]


def is_unfinished(query: RunQuery) -> bool:
    """Return whether the statuses of a list are such that a run leaves all of them when it ends."""
    return bool(query.statuses) and not {*query.statuses} & {*TERMINAL_RUN_STATUSES}


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


def quote(text: str) -> str:
    """Return the text as a TraceQL string: JSON's escapes are Go's, except that Go rejects a bare byte order mark."""
    return msgspec.json.encode(text).decode().replace("\ufeff", "\\ufeff")


def _tenant_terms(query: RunQuery) -> list[str]:
    # The reader filters runs without a tenant: Tempo finds only some of the spans where a key is ``= nil``.
    return [_equal(fields.TENANT, query.tenant)] if query.tenant else []


def _workflow_terms(query: RunQuery, is_root: Iterable[bool]) -> list[str]:
    """Return the condition on the span name, which also holds for workflows that begin with the same 500 characters."""
    if query.workflow_id is None:
        return []
    return [_any([f"name = {quote(run_template(root, (query.workflow_id, None, None)).name)}" for root in is_root])]


def _status_terms(query: RunQuery) -> list[str]:
    terms = [_STATUS_CONDITIONS.get(status) or _equal(_FIELDS["status"].key, status) for status in query.statuses]
    return terms if len(terms) < 2 else [_any(terms)]


def _summary_terms(query: RunQuery) -> list[str]:
    """Return conditions that the span of a run's newest revision meets if its list item meets the filters.

    Alternatives of several conditions are in parentheses: both operators have the same precedence.
    """
    terms = []
    if query.trigger is not None and _is_label(query.trigger):
        terms.append(_equal(_FIELDS["trigger_type"].key, query.trigger))
    if query.error_code is not None:
        terms.append(_equal(ERROR_TYPE, query.error_code))
    for key, label in zip(fields.LABEL_SETS, (query.model, query.step_type), strict=True):
        if label is not None:
            terms.append(f"span.{key} =~ {quote(_label_pattern(label))}")
    if query.min_duration is not None:
        shortest = max(0, min(query.min_duration, MAX_NS))  # Tempo refuses a number of more than 64 bits
        duration = _FIELDS["duration_ms"].key
        completed = _FIELDS["completed_at"].key + fields.NON_CANONICAL
        started = _FIELDS["started_at"].key + fields.NON_CANONICAL
        terms.append(
            _any(
                [
                    f"duration >= {shortest}ns",
                    f"span.{duration} >= {-(-shortest // MILLISECOND)}",
                    _has_value(duration + fields.NON_CANONICAL),
                    # The span of a revision has no length, and that of a run that "started" in 1970 starts later.
                    f"({_all(_REVISION_SPAN, _has_value(completed))})",
                    f'span.{started} =~ ".*1970-01-01T00:00:00.*"',
                ]
            )
        )
    return terms


def _label_pattern(label: str) -> str:
    """Return an expression that matches the label sets that may have a label."""
    written = msgspec.json.encode(label[:_MAX_LABEL]).decode()
    if len(label) > _MAX_LABEL:
        written = written[:-1]
    return f".*{re.escape(written)}.*|{fields.MANY}"


def _is_label(value: str) -> bool:
    """Return whether a label is an attribute under its usual name."""
    return 0 < len(value) <= _MAX_LABEL


def _one_of(trace_ids: Iterable[bytes]) -> str:
    return _any([f'trace:id = "{trace_id.hex()}"' for trace_id in trace_ids])


def _has_value(key: str) -> str:
    """Return the condition that a member carried as JSON is not ``null``, as an unfinished run's end often is."""
    return f'span.{key} != "null"'


def _equal(key: str, value: str) -> str:
    return f"span.{key} = {quote(value)}"


def _spans(*terms: str) -> str:
    return f"{{ {_all(*terms)} }}"


def _all(*terms: str) -> str:
    return " && ".join(terms)


def _any(terms: list[str]) -> str:
    return f"({' || '.join(terms)})"


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
    matched: int = 0
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
    spans: list[Span] = field(default_factory=list)
    """The run and revision spans that matched, newest first, those of one revision by descending digest."""
    is_complete: bool = True
    """Whether the response has all spans of the newest one's group, in its fragment."""


def read_search(body: bytes) -> tuple[list[Candidate], int]:
    """Return the traces in a response of ``/api/search``, and how many parts of its data Tempo did not search.

    Raise ValueError when it is no such response.
    """
    response = msgspec.json.decode(body, type=_SearchJson)
    missing = max(response.metrics.total_jobs - response.metrics.completed_jobs, 0)
    return [_candidate(trace) for trace in response.traces], missing


def _candidate(trace: _TraceJson) -> Candidate:
    # Search strips the leading zeros of ids.
    trace_id = bytes.fromhex(trace.trace_id.zfill(_TRACE_ID_DIGITS))
    spans = [
        (_span(trace_id, raw), span_set.matched <= len(span_set.spans))
        for span_set in trace.span_sets
        for raw in span_set.spans
    ]
    if not spans:
        raise ValueError("a trace without spans")
    spans.sort(key=lambda entry: version_of(entry[0]), reverse=True)
    return Candidate(trace_id, int(trace.start), [span for span, _ in spans], is_complete=spans[0][1])


_NIL: Final = "nil"
"""What Tempo returns for an attribute with a dedicated column that a span does not have. The list item of a span that
has such a text is not verified by the response."""


def _span(trace_id: bytes, raw: _SpanJson) -> Span:
    start = int(raw.start)
    own: list[tuple[str, Value]] = []
    for attribute in raw.attributes:
        value = attribute.value
        if value.int_value is not None:
            number = int(value.int_value)
            own.append((attribute.key, number))
            if attribute.key == fields.REVISION:
                own.append((fields.ROLE, fields.ROLE_RUN if number == fields.ROOT_REVISION else fields.ROLE_REVISION))
        elif value.string_value not in (None, _NIL):
            own.append((attribute.key, value.string_value))
    return Span(
        trace_id=trace_id,
        span_id=bytes.fromhex(raw.span_id.zfill(_SPAN_ID_DIGITS)),
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


def version_of(span: Span) -> tuple[int, str]:
    """Return the revision and the digest of a run or revision span, by which versions of a run rank."""
    attributes = span.attributes()
    revision, digest = attributes.get(fields.REVISION), attributes.get(fields.DIGEST)
    return revision if type(revision) is int else -1, digest if type(digest) is str else ""


# Searching a range of time.

EARLIEST: Final = 1
LATEST: Final = 2**32 - 1
"""The first and last second that a search can name. Zero would mean: no range."""

CHECK_SECONDS: Final = 5.0
_SPANS_PER_SET: Final = 4
"""The run spans of a run that was sent several times, or several revisions of one that has not ended."""
_MAX_LIMIT: Final = 262_144
_RANGE_REFUSED: Final = re.compile(r"range specified by start and end exceeds (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_LIMIT_REFUSED: Final = re.compile(r"limit \d+ exceeds max limit (\d+)")
_LAGGING: Final = "cannot guarantee complete results"
"""What a live store says that has not read all of its topic up to the end of a search."""
_READY_UNAVAILABLE: Final = frozenset({401, 403, 404, 405})
"""Statuses of ``/ready`` behind a gateway that exposes the query API only."""


def check_ready(http: RemoteClient) -> bool:
    """Return whether the server says that it is ready, False if a gateway hides that; raise BackendBusy if it is not.

    A Tempo that is starting answers searches and trace requests with 200 and nothing, as if it had no data.
    """
    return http.get("/ready", accept_statuses=_READY_UNAVAILABLE, timeout=CHECK_SECONDS).is_success


@dataclass(frozen=True, slots=True)
class SearchWindow:
    """What a search found."""

    low: int
    """The second from which on it searched."""
    limit: int
    """How many traces it asked for."""
    candidates: list[Candidate]
    missing: int
    """How many parts of its data Tempo did not search."""

    @property
    def is_complete(self) -> bool:
        """Whether the limit left out no trace."""
        return len(self.candidates) < self.limit

    def start(self, count: int) -> int:
        """Return the second in which the trace starts that is so many traces from the newest."""
        return sorted((candidate.start for candidate in self.candidates), reverse=True)[count - 1] // SECOND


class WindowSearcher:
    """Searches one Tempo, and remembers which ranges and limits it refuses."""

    def __init__(self, http: RemoteClient) -> None:
        self._http = http
        self.lookback_days = http.config.lookback_days
        self._max_range: int | None = None
        self._max_limit = _MAX_LIMIT
        self.needs_times = False
        """Whether more than a few runs of a list had times that are not canonical: then they are selected."""

    @property
    def limited(self) -> bool:
        """Whether the server is known to refuse wide ranges."""
        return self._max_range is not None

    def start_of_newest(self, text: str, low: int, high: int, count: int) -> int | None:
        """Return the second from which on a range has about so many traces, ``low`` when it has fewer.

        Return None when the server turned out to be ``limited`` just now.
        """
        found = self._search(text, low, high, count)
        if found is None:
            return None
        return found.low if found.is_complete else max(found.low, found.start(len(found.candidates)))

    def newest_window(self, text: str, low: int, high: int, limit: int, enough: int) -> SearchWindow | None:
        """Return the newest part of a range that could be searched completely: it ends at ``high``.

        - limit: how many traces to ask for at first.
        - enough: how many of the newest traces are sufficient.

        Return None when the server turned out to be ``limited`` just now.
        """
        while True:
            found = self._search(text, low, high, limit)
            if found is None or found.is_complete:
                return found
            low, limit = found.low, found.limit
            split = found.start(min(enough, limit))
            if low < split < high:
                low = split
            elif limit >= self._max_limit:
                # So many traces start in the lowest second, or before it and reach into it.
                if high - low <= 1:
                    raise self._too_many(limit)
                low = (low + high) // 2
            limit *= 4

    def complete_window(
        self, text: str, low: int, high: int, limit: int, spans: int = _SPANS_PER_SET
    ) -> SearchWindow | None:
        """Return a complete range when one search finds fewer traces in it than the limit; else None.

        - spans: how many of a group to return.
        """
        if self._max_range is not None and high - low > self._max_range:
            return None
        found = self._search(text, low, high, limit, spans)
        return found if found is not None and found.is_complete and found.low == low else None

    def _search(self, text: str, low: int, high: int, limit: int, spans: int = _SPANS_PER_SET) -> SearchWindow | None:
        """Search the newest part of a range that the server allows, with a limit that it allows.

        Return None when it refuses the range; what it allows is remembered.
        """
        if self._max_range is not None:
            low = max(low, high - self._max_range)
        limit = min(limit, self._max_limit)
        parameters: dict[str, str | int] = {
            "q": text,
            "start": low,
            "end": max(high, low + 1),
            "limit": limit,
            "spss": spans,
        }
        check_ready(self._http)
        response = self._http.get("/api/search", parameters, accept_statuses=(400, 422, 500))
        if response.status == 500 and _LAGGING in response.text():
            raise BackendBusy(
                "its live stores have not read all that was sent",
                where=self._http.name,
                retry_after=1,
                hint="retry; if it is always so, query_frontend.query_end_cutoff must not be negative",
            )
        if response.status != 200:
            self._learn_limits(response)
            return None if limit <= self._max_limit else self._search(text, low, high, limit, spans)
        try:
            return SearchWindow(low, limit, *read_search(response.content))
        except PARSE_ERRORS as error:
            raise BackendRefused(
                where=self._http.name, expected="Tempo's search response", got=str(error), hint="is this a Tempo?"
            ) from None

    def _learn_limits(self, response: Response) -> None:
        """Remember the range or the limit that a response allows. Raise BackendRefused when it allows none."""
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
        raise self._http.refused(response)

    def _too_many(self, limit: int) -> QueryUnsupported:
        return QueryUnsupported(
            where=self._http.name,
            expected=f"fewer than {limit} runs within one second",
            got="more",
            hint="name a workflow or a status, or raise query_frontend.search.max_result_limit",
        )
