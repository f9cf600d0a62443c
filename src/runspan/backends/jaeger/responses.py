"""Responses of Jaeger, decoded: the spans of its API v3 and of its legacy API, services and errors; no I/O.

A list needs only the run and revision spans of its runs, so the attributes of all other spans stay text until they are
needed.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from runspan.codec.decode import RunSummary, read_summary
from runspan.codec.fields import ROLE, ROLE_REVISION, ROLE_RUN
from runspan.errors import PARSE_ERRORS
from runspan.model.span import Event, Link, Span, Value


class MalformedResponse(ValueError):
    """The content is not a response that Jaeger writes."""


@contextmanager
def _decoding() -> Iterator[None]:
    """Raise every error about the content as MalformedResponse."""
    try:
        yield
    except (TypeError, *PARSE_ERRORS) as error:
        raise MalformedResponse(str(error)) from None


class FoundSpan(Struct, gc=False):
    """A span of a response, decoded only as far as a list needs."""

    trace_id: str
    """Hex."""
    span_id: str
    """Hex."""
    start: int
    """Microseconds since 1970; 0 in a response of API v3 unless it may be a revision span."""
    may_be_revision_span: bool
    """True of every run and revision span, and rarely of other spans."""
    source: _Span | _LegacySpan
    cached_summary: RunSummary | None = None

    def summary(self) -> RunSummary | None:
        """Return the list item of a run or revision span, None for any other span.

        Raise TraceIncomplete when the item does not have its digest, MalformedResponse when the span is none.
        """
        if self.cached_summary is None and self.may_be_revision_span:
            self.cached_summary = read_summary(self.span())
        return self.cached_summary

    def span(self) -> Span:
        """Return the complete span. Raise MalformedResponse when it is none."""
        with _decoding():
            return self.source.to_span()


# API v3.


class _Value(Struct, gc=False, rename="camel"):
    """OTLP's AnyValue: one member is set, or none."""

    string_value: str | UnsetType = UNSET
    int_value: int | str | UnsetType = UNSET
    bool_value: bool | UnsetType = UNSET
    double_value: float | str | UnsetType = UNSET
    bytes_value: str | UnsetType = UNSET
    array_value: _Values | UnsetType = UNSET
    kvlist_value: _Pairs | UnsetType = UNSET

    def plain(self) -> Value:
        if self.string_value is not UNSET:
            return self.string_value
        if self.int_value is not UNSET:
            return int(self.int_value)
        if self.bool_value is not UNSET:
            return self.bool_value
        if self.double_value is not UNSET:
            return float(self.double_value)
        if self.bytes_value is not UNSET:
            return b64decode(self.bytes_value)
        if self.array_value is not UNSET:
            return [value.plain() for value in self.array_value.values]
        if self.kvlist_value is not UNSET:
            return dict(_plain_pairs(self.kvlist_value.values))
        return None


class _Pair(Struct, gc=False):
    key: str = ""
    value: _Value | None = None


class _Values(Struct, gc=False):
    values: list[_Value] = []


class _Pairs(Struct, gc=False):
    values: list[_Pair] = []


class _Event(Struct, gc=False, rename="camel"):
    name: str = ""
    time_unix_nano: int | str = 0
    attributes: list[_Pair] = []


class _Link(Struct, gc=False, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    attributes: list[_Pair] = []


class _Status(Struct, gc=False):
    code: int = 0
    message: str = ""


_EMPTY: Final = Raw(b"[]")
_from_hex: Final = bytes.fromhex
_PAIRS: Final = msgspec.json.Decoder(list[_Pair])
_EVENTS: Final = msgspec.json.Decoder(list[_Event])
_LINKS: Final = msgspec.json.Decoder(list[_Link])
_ROLE_KEY: Final = b'"' + ROLE.encode() + b'"'
"""Part of the attributes of every span of runspan. Inside a text it would have backslashes before the quotes."""
_STEP_KEY: Final = b'{"key":"runspan.step.'
"""Near the beginning of the attributes of the spans of steps, and in those of no run or revision span. Jaeger writes no
space there; if it did, every span of runspan would be decoded."""


class _Span(Struct, gc=False, rename="camel"):
    """Jaeger omits members that are zero and writes 64-bit integers as strings."""

    trace_id: str
    span_id: str
    parent_span_id: str = ""
    name: str = ""
    kind: int = 0
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: Raw = _EMPTY
    events: Raw = _EMPTY
    links: Raw = _EMPTY
    status: _Status | None = None

    def to_span(self) -> Span:
        status = self.status
        code, message = (0, "") if status is None else (status.code, status.message)
        return Span(
            _trace_id(self.trace_id),
            _span_id(self.span_id),
            _span_id(self.parent_span_id) if self.parent_span_id else b"",
            self.name,
            self.kind,
            int(self.start_time_unix_nano),
            int(self.end_time_unix_nano),
            code,
            message,
            (),
            _plain_pairs(_PAIRS.decode(self.attributes)),
            tuple(
                [
                    Event(event.name, int(event.time_unix_nano), _plain_pairs(event.attributes))
                    for event in _EVENTS.decode(self.events)
                ]
            ),
            tuple(
                [
                    Link(_trace_id(link.trace_id), _span_id(link.span_id), _plain_pairs(link.attributes))
                    for link in _LINKS.decode(self.links)
                ]
            ),
        )


class _ScopeSpans(Struct, gc=False):
    spans: list[_Span] = []


class _ResourceSpans(Struct, gc=False, rename="camel"):
    scope_spans: list[_ScopeSpans] = []


class _TracesData(Struct, gc=False, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


class _TracesResponse(Struct, gc=False):
    result: _TracesData


_TRACES_RESPONSE: Final = msgspec.json.Decoder(_TracesResponse)
_RESOURCE_SPANS: Final = msgspec.json.Decoder(_ResourceSpans)


def find_traces(content: bytes) -> list[FoundSpan]:
    """Return the spans of all traces in a response of API v3, in its order. Raise MalformedResponse when it is none.

    The gateway writes one JSON object. A streaming gateway would write an object a line, which is decoded as well.
    """
    with _decoding():
        return [
            found
            for response in _responses(content)
            for resource in response.result.resource_spans
            for found in _found_spans(resource)
        ]


def read_trace(content: bytes) -> list[Span]:
    """Return the complete spans of a response of API v3, in its order. Raise MalformedResponse when it is none."""
    with _decoding():
        return [
            span.to_span()
            for response in _responses(content)
            for resource in response.result.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def read_resource(content: bytes) -> list[FoundSpan]:
    """Return the spans of one object of ``resourceSpans``. Raise MalformedResponse when it is none."""
    with _decoding():
        return _found_spans(_RESOURCE_SPANS.decode(content))


def _found_spans(resource: _ResourceSpans) -> list[FoundSpan]:
    found: list[FoundSpan] = []
    for scope in resource.scope_spans:
        for span in scope.spans:
            trace_id, span_id, text = span.trace_id, span.span_id, bytes(span.attributes)
            if len(trace_id) != 32:
                trace_id = _full_id(trace_id, 32)
            if len(span_id) != 16:
                span_id = _full_id(span_id, 16)
            may_be_revision_span = _STEP_KEY not in text and _ROLE_KEY in text
            start = int(span.start_time_unix_nano) // 1000 if may_be_revision_span else 0
            found.append(FoundSpan(trace_id, span_id, start, may_be_revision_span, span))
    return found


def _responses(content: bytes) -> list[_TracesResponse]:
    try:
        return [_TRACES_RESPONSE.decode(content)]
    except PARSE_ERRORS:
        if b"\n" not in content.strip():
            raise
        return _TRACES_RESPONSE.decode_lines(content)


def _plain_pairs(pairs: Iterable[_Pair]) -> tuple[tuple[str, Value], ...]:
    return tuple(
        [
            (
                pair.key,
                None if (value := pair.value) is None else text if (text := value.string_value) else value.plain(),
            )
            for pair in pairs
        ]
    )


def _trace_id(text: str) -> bytes:
    return _from_hex(text if len(text) == 32 else _full_id(text, 32))


def _span_id(text: str) -> bytes:
    return _from_hex(text if len(text) == 16 else _full_id(text, 16))


def _full_id(text: str, digits: int) -> str:
    """Return a hex id with the leading zeros that some responses omit."""
    if len(text) > digits:
        raise ValueError(f"{text[:40]!r} is no id of {digits} hex digits")
    return text.rjust(digits, "0")


# The legacy API: times in microseconds, tags with a type, references.


class _LegacyTag(Struct):
    key: str
    type: str = "string"
    value: Any = None

    def plain(self) -> Value:
        if self.type == "int64":
            return int(self.value)
        if self.type == "float64":
            return float(self.value)
        if self.type == "binary":
            return b64decode(self.value)
        return self.value  # type: ignore[no-any-return]


class _LegacyEvent(Struct):
    timestamp: int = 0
    fields: list[_LegacyTag] = []


class _LegacyReference(Struct):
    ref_type: str = msgspec.field(name="refType", default="")
    trace_id: str = msgspec.field(name="traceID", default="")
    span_id: str = msgspec.field(name="spanID", default="")


class _LegacySpan(Struct, rename="camel"):
    trace_id: str = msgspec.field(name="traceID")
    span_id: str = msgspec.field(name="spanID")
    operation_name: str = ""
    references: list[_LegacyReference] | None = None
    start_time: int = 0
    duration: int = 0
    tags: list[_LegacyTag] | None = None
    logs: list[_LegacyEvent] | None = None

    def to_span(self) -> Span:
        trace_id = _trace_id(self.trace_id)
        references = [
            (reference.ref_type, Link(_trace_id(reference.trace_id), _span_id(reference.span_id)))
            for reference in self.references or ()
        ]
        parents = [link for kind, link in references if kind == "CHILD_OF" and link.trace_id == trace_id]
        start = self.start_time * 1000
        return Span(
            trace_id=trace_id,
            span_id=_span_id(self.span_id),
            parent_id=parents[0].span_id if parents else b"",
            name=self.operation_name,
            kind=0,
            start=start,
            end=start + self.duration * 1000,
            status=0,
            message="",
            shared=(),
            own=[(tag.key, tag.plain()) for tag in self.tags or ()],
            events=tuple(
                [
                    Event("", log.timestamp * 1000, tuple([(tag.key, tag.plain()) for tag in log.fields]))
                    for log in self.logs or ()
                ]
            ),
            links=tuple([link for _, link in references if link not in parents[:1]]),
        )


class _LegacyTrace(Struct):
    spans: list[_LegacySpan] = []


class _LegacyResponse(Struct):
    data: list[_LegacyTrace] | None = None


_LEGACY_RESPONSE: Final = msgspec.json.Decoder(_LegacyResponse)


def find_legacy_traces(content: bytes) -> list[FoundSpan]:
    """Return the spans of all traces in a response of the legacy API. Raise MalformedResponse when it is none.

    Times are truncated to microseconds: a run document has times of whole milliseconds, or carries them in attributes.
    """
    with _decoding():
        return [
            FoundSpan(
                _full_id(span.trace_id, 32),
                _full_id(span.span_id, 16),
                span.start_time,
                any(tag.key == ROLE and tag.value in (ROLE_RUN, ROLE_REVISION) for tag in span.tags or ()),
                span,
            )
            for trace in _LEGACY_RESPONSE.decode(content).data or ()
            for span in trace.spans
        ]


# Services and errors.


class _Services(Struct):
    services: list[str] | None = None
    data: list[str] | None = None


def read_services(content: bytes) -> list[str]:
    """Return the service names of a response of either API. Raise MalformedResponse when it is none."""
    with _decoding():
        response = msgspec.json.decode(content, type=_Services)
    return response.services or response.data or []


class _Error(Struct):
    message: str = ""
    msg: str = ""


class _ErrorBody(Struct):
    error: _Error | None = None
    errors: list[_Error] | None = None


def read_error(content: bytes) -> str | None:
    """Return the message of an error of either API, which may be ""; None when the response is not Jaeger's."""
    try:
        body = msgspec.json.decode(content, type=_ErrorBody)
    except PARSE_ERRORS:
        return None
    if body.error is not None:
        return body.error.message
    return None if body.errors is None else "; ".join(error.msg for error in body.errors)
