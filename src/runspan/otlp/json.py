"""The reader and writer of OTLP/JSON; no I/O.

OTLP/JSON is protobuf's JSON with one exception: trace and span ids are hex, where protobuf uses base64. The reader
converts the ids and leaves everything else to protobuf, which accepts both spellings of names and 64-bit integers.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn

from google.protobuf.json_format import ParseDict, ParseError
from msgspec import Raw
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan._version import __version__
from runspan.errors import PARSE_ERRORS, PayloadError
from runspan.model.span import Span, Value
from runspan.otlp.protobuf_reader import (
    ParsedRequest,
    all_spans,
    check_json,
    check_json_text,
    default_max_spans,
    to_parsed_request,
)
from runspan.otlp.protobuf_writer import Resource

_ID_NAMES = ("traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id")
_HEX = re.compile("(?:[0-9a-fA-F]{2})*")


def read_json(body: bytes) -> ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest in OTLP/JSON. See ``protobuf_reader.read_protobuf``."""
    check_json_text(body)
    data = _load(body)
    check_json(data, default_max_spans(len(body)))
    return to_parsed_request(_to_message(data))


def read_spans(body: bytes) -> list[Span]:
    """Return all spans of a TracesData in OTLP/JSON, including foreign spans. Raises PayloadError."""
    return all_spans(_to_message(_load(body)))


PROTOBUF_JSON_ERRORS: Final = (ParseError, ArithmeticError, TypeError, AttributeError, SystemError, *PARSE_ERRORS)
"""What protobuf's parser of JSON raises for malformed content; SystemError for a key with a lone surrogate."""


def write_json(spans: Iterable[Span], resource: Resource | None = None) -> bytes:
    """Return an ExportTraceServiceRequest of the spans in OTLP/JSON."""
    scopes: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        scopes.setdefault(span.scope, []).append(_span(span))
    found = [{"scope": {"name": name, "version": __version__}, "spans": parts} for name, parts in scopes.items()]
    entry: dict[str, Any] = {"scopeSpans": found}
    if resource is not None:
        entry = {"resource": {"attributes": _attributes(resource.pairs().items())}, **entry}
    return json.dumps({"resourceSpans": [entry]}, ensure_ascii=False, separators=(",", ":")).encode()


def _load(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body.decode(), parse_constant=_no_constant)
    except PARSE_ERRORS as error:
        raise _unreadable(str(error) or "nesting too deep") from None
    if not isinstance(data, dict):
        raise _unreadable(f"{type(data).__name__} at the top")
    return data


def _to_message(data: dict[str, Any]) -> TracesData:
    _ids_to_base64(data)
    message = TracesData()
    try:
        ParseDict(data, message, ignore_unknown_fields=True)
    except PROTOBUF_JSON_ERRORS as error:
        raise _unreadable(str(error)) from None
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


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


def _ids_to_base64(data: dict[str, Any]) -> None:
    scopes = _children(_children([("", data)], "resourceSpans", "resource_spans"), "scopeSpans", "scope_spans")
    for path, span in _children(scopes, "spans"):
        _rewrite_ids(path, span)
        for link_path, link in _children([(path, span)], "links"):
            _rewrite_ids(link_path, link)


def _rewrite_ids(path: str, message: dict[str, Any]) -> None:
    for name in _ID_NAMES:
        text = message.get(name)
        if text is None:
            continue
        if not isinstance(text, str) or not _HEX.fullmatch(text):
            raise PayloadError(
                where=path + name, expected="hex digits", got=repr(text)[:60], hint="OTLP/JSON ids are hex"
            )
        message[name] = b64encode(bytes.fromhex(text)).decode()


def _span(span: Span) -> dict[str, Any]:
    fields: dict[str, Any] = {"traceId": span.trace_id.hex(), "spanId": span.span_id.hex()}
    if span.parent_id:
        fields["parentSpanId"] = span.parent_id.hex()
    fields |= {
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes(span.pairs()),
    }
    if span.events:
        fields["events"] = [
            {"timeUnixNano": str(event.time), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in span.events
        ]
    if span.links:
        fields["links"] = [
            {"traceId": link.trace_id.hex(), "spanId": link.span_id.hex(), "attributes": _attributes(link.attributes)}
            for link in span.links
        ]
    if span.status or span.message:
        fields["status"] = {"code": span.status} | ({"message": span.message} if span.message else {})
    return fields


def _attributes(pairs: Iterable[tuple[str, Value]]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in pairs]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE.get(value, "NaN")}
    if isinstance(value, Raw):
        return {"stringValue": bytes(value).decode()}
    if isinstance(value, bytes):
        return {"bytesValue": b64encode(value).decode()}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _attributes(value.items())}}
    return {}


_NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}
