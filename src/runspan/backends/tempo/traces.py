"""Tempo's answer to a trace id, read; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan.backends.remote.http import Answer
from runspan.errors import PayloadError
from runspan.otlp.protobuf import all_spans, read_spans
from runspan.span import Span

PARTIAL: Final = "Tempo hands this trace over in part: raise overrides.defaults.global.max_bytes_per_trace"
CUT: Final = "Tempo has cut attributes of this trace: set distributor.max_attribute_bytes to 0"

_TRACE, _STATUS = 1, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IS_PARTIAL: Final = 1
_COMPLAINTS: Final = (json_format.ParseError, ValueError, ArithmeticError, TypeError, AttributeError, RecursionError)
"""What the two readers of JSON raise."""


class _Wrapped(msgspec.Struct):
    trace: msgspec.Raw = msgspec.Raw(b"{}")


def read_trace(body: bytes, *, wrapped: bool, again: Callable[[], Answer]) -> tuple[list[Span], str]:
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
