"""The reader and writer of OTLP/JSON; no I/O.

OTLP/JSON is protobuf's JSON with one exception: trace and span ids are hex, where protobuf uses base64. The reader
converts the ids and leaves everything else to protobuf, which reads both spellings of names and of 64-bit integers. The
writer is its own, since protobuf makes the whole JSON in memory, at many times its size; the tests compare it with
protobuf's.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, groupby
from math import isfinite
from operator import attrgetter
from typing import Any, Final

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from msgspec import Raw
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan._version import __version__
from runspan.errors import PARSE_ERRORS, PayloadError
from runspan.model.span import Attributes, Event, Link, Span, Value
from runspan.otlp import protobuf_reader
from runspan.otlp.protobuf_writer import Resource

_encode = msgspec.json.Encoder().encode
_ID_NAMES = ("traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id")
_HEX = re.compile("(?:[0-9a-fA-F]{2})*")


def read_json(body: bytes) -> protobuf_reader.ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest in OTLP/JSON. See ``protobuf_reader.read_protobuf``."""
    return protobuf_reader.to_parsed_request(read_message(body))


def read_message(body: bytes) -> TracesData:
    """Return an ExportTraceServiceRequest in OTLP/JSON as a message. See ``protobuf_reader.read_message``."""
    protobuf_reader.check_json_text(body)
    data = _load(body)
    protobuf_reader.check_json(data, protobuf_reader.default_max_spans(len(body)))
    return _to_message(data)


def read_spans(body: bytes) -> list[Span]:
    """Return all spans of a TracesData in OTLP/JSON, including foreign spans. Raises PayloadError."""
    return protobuf_reader.all_spans(_to_message(_load(body)))


PROTOBUF_JSON_ERRORS: Final = (ParseError, ArithmeticError, TypeError, AttributeError, SystemError, *PARSE_ERRORS)
"""What protobuf's parser of JSON raises for malformed content; SystemError for a key with a lone surrogate."""


_PIECE_BYTES: Final = 64 << 10
_NO_PARENT_FLAGS: Final = 0x100
"""``flags`` of a span or a link: the parent is known not to be remote, as in ``protobuf_writer``."""


def write_json(spans: Iterable[Span], resource: Resource | None = None) -> bytes:
    """Return an ExportTraceServiceRequest of the spans in OTLP/JSON, with the spans of each scope together."""
    scopes: dict[str, list[Span]] = {}
    for span in spans:
        scopes.setdefault(span.scope, []).append(span)
    return b"".join(json_pieces(chain.from_iterable(scopes.values()), resource))


def json_pieces(spans: Iterable[Span], resource: Resource | None = None) -> Iterator[bytes]:
    """Yield an ExportTraceServiceRequest of the spans in OTLP/JSON, in pieces of some 64 KiB.

    Its values are those of protobuf's JSON for what ``protobuf_writer`` writes. Successive spans of a scope are
    together.
    """
    parts = [b'{"resourceSpans":[{']
    if resource is not None:
        attributes = [_attribute(key, value) for key, value in resource.pairs().items()]
        parts += (b'"resource":{"attributes":', _encode(attributes), b"},")
    parts.append(b'"scopeSpans":[')
    size, opening = 0, b""
    for scope, group in groupby(spans, attrgetter("scope")):
        header = _encode({"name": scope, "version": __version__} if scope else {"version": __version__})
        parts += (opening, b'{"scope":', header, b',"spans":[')
        opening, comma = b"]},", b""
        for span in group:
            text = _span(span)
            parts += (comma, text)
            comma = b","
            size += len(text)
            if size > _PIECE_BYTES:
                yield b"".join(parts)
                parts.clear()
                size = 0
    parts.append(b"]}]}]}" if opening else b"]}]}")
    yield b"".join(parts)


def _span(span: Span) -> bytes:
    members: dict[str, Any] = {"traceId": span.trace_id.hex(), "spanId": span.span_id.hex()}
    if span.parent_id:
        members["parentSpanId"] = span.parent_id.hex()
    if span.name:
        members["name"] = span.name
    if span.kind:
        members["kind"] = span.kind
    if span.start:
        members["startTimeUnixNano"] = str(span.start)
    if span.end:
        members["endTimeUnixNano"] = str(span.end)
    attributes = [*map(_shared, span.shared), _attributes(span.own)]
    if any(attributes):
        members["attributes"] = Raw(b"[" + b",".join(filter(None, attributes)) + b"]")
    if span.events:
        members["events"] = [_event(event) for event in span.events]
    if span.links:
        members["links"] = [_link(link) for link in span.links]
    status: dict[str, Any] = {"message": span.message} if span.message else {}
    if span.status:
        status["code"] = span.status
    members["status"] = status
    members["flags"] = _NO_PARENT_FLAGS
    return _encode(members)


def _event(event: Event) -> dict[str, Any]:
    members: dict[str, Any] = {"timeUnixNano": str(event.time)} if event.time else {}
    if event.name:
        members["name"] = event.name
    if event.attributes:
        members["attributes"] = [_attribute(key, value) for key, value in event.attributes]
    return members


def _link(link: Link) -> dict[str, Any]:
    members: dict[str, Any] = {"traceId": link.trace_id.hex(), "spanId": link.span_id.hex()}
    if link.attributes:
        members["attributes"] = [_attribute(key, value) for key, value in link.attributes]
    members["flags"] = _NO_PARENT_FLAGS
    return members


@lru_cache(maxsize=1024)
def _shared(group: Attributes) -> bytes:
    return _attributes(group.pairs)


def _attributes(pairs: Iterable[tuple[str, Value]]) -> bytes:
    """Return attributes as the content of a JSON array."""
    return _encode([_attribute(key, value) for key, value in pairs])[1:-1]


def _attribute(key: str, value: Value) -> dict[str, Any]:
    return {"key": key, "value": _any(value)} if key else {"value": _any(value)}


def _any(value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, Raw):
        return {"stringValue": bytes(value).decode()}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if isfinite(value) else _NOT_FINITE[repr(value)]}
    if isinstance(value, bytes):
        return {"bytesValue": b64encode(value).decode()}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_any(item) for item in value]} if value else {}}
    if isinstance(value, dict):
        items = [_attribute(key, item) for key, item in value.items()]
        return {"kvlistValue": {"values": items} if items else {}}
    return {}


_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _load(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except PARSE_ERRORS as error:
        raise _unreadable(str(error)) from None


def _to_message(data: dict[str, Any]) -> TracesData:
    for path, holder in _with_ids(data):
        _ids_to_base64(path, holder)
    message = TracesData()
    try:
        ParseDict(data, message, ignore_unknown_fields=True)
    except PROTOBUF_JSON_ERRORS as error:
        raise _unreadable(str(error)) from None
    return message


def _unreadable(got: str) -> PayloadError:
    return PayloadError(
        "not readable",
        where="body",
        expected="an ExportTraceServiceRequest in OTLP/JSON",
        got=got[:300],
        hint="ids are hex, enums integers, 64-bit integers decimal strings",
    )


def _children(parents: Iterable[tuple[str, Any]], *names: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects in the lists of these names with their paths. Other values are left for protobuf to refuse."""
    for path, parent in parents:
        for name in names:
            items = parent.get(name)
            if isinstance(items, list):
                for number, item in enumerate(items):
                    if isinstance(item, dict):
                        yield f"{path}{name}[{number}].", item


def _with_ids(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the spans of a TracesData and their links with their paths."""
    scopes = _children(_children([("", data)], "resourceSpans", "resource_spans"), "scopeSpans", "scope_spans")
    for path, span in _children(scopes, "spans"):
        yield path, span
        yield from _children([(path, span)], "links")


def _ids_to_base64(path: str, message: dict[str, Any]) -> None:
    for name in _ID_NAMES:
        text = message.get(name)
        if text is None:
            continue
        if not isinstance(text, str) or not _HEX.fullmatch(text):
            raise PayloadError(
                where=path + name, expected="hex digits", got=repr(text)[:60], hint="OTLP/JSON ids are hex"
            )
        message[name] = b64encode(bytes.fromhex(text)).decode()
