"""Tempo's search answers, read; no I/O.

Tempo's answer to a trace id, read; no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan.codec.fields import REVISION, ROLE, ROLE_REVISION, ROLE_RUN, ROLE_STEP
from runspan.errors import PayloadError
from runspan.http.client import Response
from runspan.model.span import UNSET, Span, Value
from runspan.otlp.protobuf_reader import all_spans, read_spans

_ID_DIGITS: Final = 32
SPAN_ID_DIGITS: Final = 16


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    int_value: str | int | None = None


class _Attribute(msgspec.Struct):
    key: str
    value: _Value


class _Span(msgspec.Struct, rename={"span_id": "spanID", "start": "startTimeUnixNano", "duration": "durationNanos"}):
    span_id: str = ""
    name: str = ""
    start: str = "0"
    duration: str = "0"
    attributes: list[_Attribute] = []


class _SpanSet(msgspec.Struct):
    spans: list[_Span] = []


class _Trace(msgspec.Struct, rename={"trace_id": "traceID", "start": "startTimeUnixNano", "span_sets": "spanSets"}):
    trace_id: str
    start: str = "0"
    span_sets: list[_SpanSet] = []


class _Metrics(msgspec.Struct, rename="camel"):
    completed_jobs: int = 0
    total_jobs: int = 0


class _SearchResponse(msgspec.Struct):
    traces: list[_Trace] = []
    metrics: _Metrics = msgspec.field(default_factory=_Metrics)


@dataclass(slots=True)
class Candidate:
    """A trace that a search found. start: of the earliest fragment found, nanoseconds.

    heads: one of each revision that matched. steps: the ids of its step spans, in hex, as far as the answer has them.
    """

    trace_id: bytes
    start: int
    heads: list[Span] = field(default_factory=list)
    steps: set[str] = field(default_factory=set)

    @property
    def newest(self) -> Span:
        """The head of the highest revision found."""
        return max(self.heads, key=_revision)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """traces: all that came, heads or not. missing: how many parts of its data Tempo did not look at."""

    candidates: list[Candidate]
    traces: int
    starts: list[int]
    missing: int


def read_search(body: bytes) -> SearchResult:
    """The answer of ``/api/search``; ValueError when it is none."""
    answer = msgspec.json.decode(body, type=_SearchResponse)
    candidates = [_candidate(trace) for trace in answer.traces]
    return SearchResult(
        [candidate for candidate in candidates if candidate.heads],
        len(candidates),
        sorted((candidate.start for candidate in candidates), reverse=True),
        max(answer.metrics.total_jobs - answer.metrics.completed_jobs, 0),
    )


def _candidate(trace: _Trace) -> Candidate:
    # Search leaves out an id's leading zeros.
    candidate = Candidate(bytes.fromhex(trace.trace_id.zfill(_ID_DIGITS)), int(trace.start))
    for span_set in trace.span_sets:
        has_head = False
        for raw in span_set.spans:
            role = _role(raw)
            if role == ROLE_STEP:
                candidate.steps.add(raw.span_id.zfill(SPAN_ID_DIGITS))
            elif role in (ROLE_RUN, ROLE_REVISION) and not has_head:
                has_head = True
                candidate.heads.append(_span(candidate.trace_id, raw))
    return candidate


def _role(raw: _Span) -> str | None:
    for attribute in raw.attributes:
        if attribute.key == ROLE:
            return attribute.value.string_value
    return None


def _span(trace_id: bytes, raw: _Span) -> Span:
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


PARTIAL: Final = "Tempo hands this trace over in part: raise overrides.defaults.global.max_bytes_per_trace"
CUT: Final = "Tempo has cut attributes of this trace: set distributor.max_attribute_bytes to 0"

_TRACE, _STATUS = 1, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IS_PARTIAL: Final = 1
_COMPLAINTS: Final = (json_format.ParseError, ValueError, ArithmeticError, TypeError, AttributeError, RecursionError)
"""What the two readers of JSON raise."""


class _Wrapped(msgspec.Struct):
    trace: msgspec.Raw = msgspec.Raw(b"{}")


def read_trace(body: bytes, *, wrapped: bool, again: Callable[[], Response]) -> tuple[list[Span], str]:
    """The spans, and what is wrong with the trace as a whole. ValueError when the body is no trace.

    wrapped: whether it is the second version's answer, which has a status. again: asks for the same as JSON. An
    attribute cut inside a character makes the whole protobuf message unreadable, while JSON shows a replacement there,
    and all other spans as they are.
    """
    trace, partial = _unwrap(body) if wrapped else (body, False)
    try:
        return read_spans(trace), PARTIAL if partial else ""
    except PayloadError:
        answer = again().content
    try:
        text = bytes(msgspec.json.decode(answer, type=_Wrapped).trace)
        return all_spans(json_format.Parse(text, TracesData(), ignore_unknown_fields=True)), CUT
    except _COMPLAINTS as error:
        raise ValueError(f"neither protobuf nor JSON can be read: {error}") from None


def _unwrap(body: bytes) -> tuple[bytes, bool]:
    """The trace inside a TraceByIDResponse, and whether its status is PARTIAL."""
    trace, partial, place = b"", False, 0
    while place < len(body):
        tag, place = _varint(body, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _varint(body, place)
            partial = partial or (number == _STATUS and value == _IS_PARTIAL)
        elif kind == _BYTES:
            length, place = _varint(body, place)
            if place + length > len(body):
                raise ValueError("the answer ends inside a field")
            if number == _TRACE:
                trace += body[place : place + length]
            place += length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
    return trace, partial


def _varint(body: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(body) and shift < 70:
        byte = body[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a number without an end")
