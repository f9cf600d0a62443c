"""What Jaeger answers, read: the traces of its API v3 become neutral spans; no I/O.

A list looks at the heads of its runs alone, so the attributes of the other spans stay text until somebody asks.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from runspan.codec.fields import REVISION
from runspan.model.span import Event, Link, Span, Value


class MalformedResponse(ValueError):
    """The content is not what Jaeger writes."""


COMPLAINTS: Final = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""What content raises that is not what Jaeger writes."""


class _Source(Protocol):
    """A span as it was answered."""

    def neutral(self) -> Span: ...


class FoundSpan(Struct, frozen=True, gc=False):
    """A span of an answer, looked into no further than a list needs.

    trace_id, span_id: hex. is_head: true of every head of a run, and rarely of others. Of a head, start: microseconds
    since 1970, and text: the attributes as they were answered; empty where the answer has them in pieces.
    """

    trace_id: str
    span_id: str
    start: int
    is_head: bool
    source: Any
    text: bytes = b""

    def span(self) -> Span:
        """The whole span. Unreadable when it is none."""
        source: _Source = self.source
        try:
            return source.neutral()
        except COMPLAINTS as error:
            raise MalformedResponse(str(error)) from None


@contextmanager
def decoding() -> Iterator[None]:
    """Every complaint about the content as Unreadable."""
    try:
        yield
    except COMPLAINTS as error:
        raise MalformedResponse(str(error)) from None


class _Value(Struct, gc=False, rename="camel"):
    """OTLP's AnyValue: one member is there, or none."""

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
_HEAD: Final = b'"' + REVISION.encode() + b'"'
"""Stands in the attributes of every head. In a text it would have backslashes before the quotes."""


_STEP: Final = b'{"key":"runspan.step.'
"""Stands near the beginning of a step's attributes, which spares the search for ``_HEAD`` to their end, and in those of
no head. Jaeger writes no space between them; if it did, the search alone would tell."""


class _Span(Struct, gc=False, rename="camel"):
    """Members that are zero are left out; 64-bit integers are strings."""

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

    def neutral(self) -> Span:
        status = self.status
        code, message = (0, "") if status is None else (status.code, status.message)
        return Span(
            trace_id_of(self.trace_id),
            span_id_of(self.span_id),
            span_id_of(self.parent_span_id) if self.parent_span_id else b"",
            self.name,
            self.kind,
            int(self.start_time_unix_nano),
            int(self.end_time_unix_nano),
            code,
            message,
            (),
            _plain_pairs(_PAIRS.decode(self.attributes)),
            () if self.events is _EMPTY else self._events(),
            () if self.links is _EMPTY else self._links(),
        )

    def _events(self) -> tuple[Event, ...]:
        return tuple(
            [
                Event(event.name, int(event.time_unix_nano), _plain_pairs(event.attributes))
                for event in _EVENTS.decode(self.events)
            ]
        )

    def _links(self) -> tuple[Link, ...]:
        return tuple(
            [
                Link(trace_id_of(link.trace_id), span_id_of(link.span_id), _plain_pairs(link.attributes))
                for link in _LINKS.decode(self.links)
            ]
        )


class _ScopeSpans(Struct, gc=False):
    spans: list[_Span] = []


class _ResourceSpans(Struct, gc=False, rename="camel"):
    scope_spans: list[_ScopeSpans] = []


class _TracesData(Struct, gc=False, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


class _TracesResponse(Struct, gc=False):
    result: _TracesData


_ANSWER = msgspec.json.Decoder(_TracesResponse)
_RESOURCE = msgspec.json.Decoder(_ResourceSpans)


def find_traces(content: bytes) -> list[FoundSpan]:
    """The spans of all traces in an answer of API v3, in its order. Unreadable when it is none.

    The gateway writes one JSON object; a streaming one would write an object a line, and is read as well.
    """
    with decoding():
        return [
            found
            for answer in _answers(content)
            for resource in answer.result.resource_spans
            for found in _found(resource)
        ]


def read_trace(content: bytes) -> list[Span]:
    """The whole spans of an answer of API v3, in its order. Unreadable when it is none."""
    with decoding():
        return [
            span.neutral()
            for answer in _answers(content)
            for resource in answer.result.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def read_resource(content: bytes) -> list[FoundSpan]:
    """The spans of one object of the answer's ``resourceSpans``. Unreadable when it is none."""
    with decoding():
        return _found(_RESOURCE.decode(content))


def _found(resource: _ResourceSpans) -> list[FoundSpan]:
    found: list[FoundSpan] = []
    for scope in resource.scope_spans:
        for span in scope.spans:
            trace_id, span_id, text = span.trace_id, span.span_id, bytes(span.attributes)
            if len(trace_id) != 32:
                trace_id = hex_id(trace_id, 32)
            if len(span_id) != 16:
                span_id = hex_id(span_id, 16)
            if _STEP in text or _HEAD not in text:
                found.append(FoundSpan(trace_id, span_id, 0, False, span))
            else:
                start = int(span.start_time_unix_nano) // 1000
                found.append(FoundSpan(trace_id, span_id, start, True, span, text))
    return found


def _answers(content: bytes) -> list[_TracesResponse]:
    try:
        return [_ANSWER.decode(content)]
    except msgspec.MsgspecError:
        if b"\n" not in content.strip():
            raise
        return _ANSWER.decode_lines(content)


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


def trace_id_of(text: str) -> bytes:
    return _from_hex(text if len(text) == 32 else hex_id(text, 32))


def span_id_of(text: str) -> bytes:
    return _from_hex(text if len(text) == 16 else hex_id(text, 16))


def hex_id(text: str, digits: int) -> str:
    """The id with the leading zeros that some answers leave away."""
    if len(text) > digits:
        raise ValueError(f"{text[:40]!r} is no id of {digits} hex digits")
    return text.rjust(digits, "0")


# Services, and what Jaeger says when it refuses.


class _Services(Struct):
    services: list[str] | None = None
    data: list[str] | None = None


def read_services(content: bytes) -> list[str]:
    """The service names of an answer of either API. Unreadable when it is none."""
    with decoding():
        answer = msgspec.json.decode(content, type=_Services)
    return answer.services or answer.data or []


class _ErrorInfo(Struct):
    message: str = ""


class _ErrorBody(Struct):
    error: _ErrorInfo


class _LegacyErrorInfo(Struct):
    msg: str = ""


class _LegacyErrorBody(Struct):
    errors: list[_LegacyErrorInfo]


def refusal(content: bytes) -> str | None:
    """What Jaeger itself says in an error, "" when that is nothing; None when it is not Jaeger who answered."""
    try:
        return msgspec.json.decode(content, type=_ErrorBody).error.message
    except msgspec.MsgspecError:
        pass
    try:
        return "; ".join(fault.msg for fault in msgspec.json.decode(content, type=_LegacyErrorBody).errors)
    except msgspec.MsgspecError:
        return None
