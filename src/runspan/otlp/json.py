"""The reader and writer of OTLP/JSON; no I/O.

OTLP/JSON is protobuf's JSON with one exception: trace and span ids are hex, where protobuf uses base64. The reader
and writer convert the ids and leave everything else to protobuf, which reads both spellings of names and of 64-bit
integers.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan.errors import PARSE_ERRORS, PayloadError
from runspan.model.span import Span
from runspan.otlp import protobuf_reader
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

_ID_NAMES = ("traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id")
_HEX = re.compile("(?:[0-9a-fA-F]{2})*")


def read_json(body: bytes) -> protobuf_reader.ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest in OTLP/JSON. See ``protobuf_reader.read_protobuf``."""
    protobuf_reader.check_json_text(body)
    data = _load(body)
    protobuf_reader.check_json(data, protobuf_reader.default_max_spans(len(body)))
    return protobuf_reader.to_parsed_request(_to_message(data))


def read_spans(body: bytes) -> list[Span]:
    """Return all spans of a TracesData in OTLP/JSON, including foreign spans. Raises PayloadError."""
    return protobuf_reader.all_spans(_to_message(_load(body)))


PROTOBUF_JSON_ERRORS: Final = (ParseError, ArithmeticError, TypeError, AttributeError, SystemError, *PARSE_ERRORS)
"""What protobuf's parser of JSON raises for malformed content; SystemError for a key with a lone surrogate."""


def write_json(spans: Iterable[Span], resource: Resource | None = None) -> bytes:
    """Return an ExportTraceServiceRequest of the spans in OTLP/JSON."""
    message = protobuf_reader.parse_traces_data(request_bytes(resource or Resource(), map(scoped_bytes, spans)))
    if resource is None:
        message.resource_spans[0].ClearField("resource")
    data = MessageToDict(message, use_integers_for_enums=True)
    for _, holder in _with_ids(data):
        holder.update({name: b64decode(holder[name]).hex() for name in _ID_NAMES if name in holder})
    return msgspec.json.encode(data)


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
