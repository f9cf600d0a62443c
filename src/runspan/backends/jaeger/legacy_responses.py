"""What Jaeger's older API answers, read: microseconds, tags with a type, references; no I/O."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import msgspec
from msgspec import Struct

from runspan.backends.jaeger.responses import FoundSpan, decoding, hex_id, span_id_of, trace_id_of
from runspan.codec.fields import REVISION
from runspan.model.span import Event, Link, Span, Value


class _Tag(Struct):
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


class _LegacyLog(Struct):
    timestamp: int = 0
    fields: list[_Tag] = []


class _Reference(Struct):
    ref_type: str = msgspec.field(name="refType", default="")
    trace_id: str = msgspec.field(name="traceID", default="")
    span_id: str = msgspec.field(name="spanID", default="")


class _LegacySpan(Struct, rename="camel"):
    trace_id: str = msgspec.field(name="traceID")
    span_id: str = msgspec.field(name="spanID")
    operation_name: str = ""
    references: list[_Reference] | None = None
    start_time: int = 0
    duration: int = 0
    tags: list[_Tag] | None = None
    logs: list[_LegacyLog] | None = None

    def neutral(self) -> Span:
        trace_id = trace_id_of(self.trace_id)
        references = [
            (reference.ref_type, Link(trace_id_of(reference.trace_id), span_id_of(reference.span_id)))
            for reference in self.references or ()
        ]
        parents = [link for kind, link in references if kind == "CHILD_OF" and link.trace_id == trace_id]
        start = self.start_time * 1000
        return Span(
            trace_id=trace_id,
            span_id=span_id_of(self.span_id),
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


_LEGACY_RESPONSE = msgspec.json.Decoder(_LegacyResponse)


def find_legacy_traces(content: bytes) -> list[FoundSpan]:
    """The spans of all traces in an answer of the older API, cut to whole microseconds: enough for a run's document,
    whose times are whole milliseconds or stand in attributes."""
    with decoding():
        return [
            FoundSpan(
                hex_id(span.trace_id, 32),
                hex_id(span.span_id, 16),
                span.start_time,
                any(tag.key == REVISION for tag in span.tags or ()),
                span,
            )
            for trace in _LEGACY_RESPONSE.decode(content).data or ()
            for span in trace.spans
        ]
