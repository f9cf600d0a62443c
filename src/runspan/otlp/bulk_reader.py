"""The fast reader of OTLP requests with finished runs in the layout of ``bulk_writer``, for ingestion; no I/O.

Spans are recognised by their layout: what is the same on many spans is looked up as one piece of bytes, and each member
is sliced out and becomes a part of the document's text, so no object is made per attribute. The digest proves the text,
which is then parsed once. A run is read here if all of its spans are in the request and have the layout, also with
further attributes, which the decoder ignores. The spans of all other traces are read by ``protobuf_reader`` and
``codec.decode``, which would return the same document for the runs that are read here.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import Any, Final, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from runspan.codec import fields, semconv
from runspan.codec.attributes import STEP_TEMPLATES, run_template
from runspan.codec.placement import Interval, enclosing_loops, positions
from runspan.errors import DocumentError
from runspan.model.document import Envelope, Run, Step, parse_document, sort_time, time_ns
from runspan.model.span import run_ids, step_digest
from runspan.model.timestamps import LATEST_END_NS, MAX_NS, MILLISECOND, SECOND, canonical_text
from runspan.otlp.protobuf_reader import (
    NO_SPAN_ID,
    ParsedRequest,
    ReceivedRun,
    default_max_spans,
    is_small,
    read_protobuf,
)
from runspan.otlp.protobuf_writer import (
    END_TAG,
    IN_SPAN,
    PARENT_ID,
    PLAIN_END,
    SPAN_ID,
    START_TAG,
    TRACE_ID,
    string_prefix,
    varint,
)

_json = msgspec.json.encode


class _Unusual(Exception):
    """Bytes that do not have the layout."""


_NO_LAYOUT: Final = (_Unusual, IndexError, KeyError, ValueError)
"""What reading such bytes raises: a length leads out of them, or what is looked up or searched is not there."""


def read_request(body: bytes) -> ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest: ``runs``, and the spans of all other traces.

    Raises the errors of ``protobuf_reader.read_protobuf``.
    """
    if _RUN_SCOPE not in body or not is_small(body):
        return read_protobuf(body)
    try:
        traces, total = _read_traces(body)
    except (*_NO_LAYOUT, DecodeError):
        return read_protobuf(body)
    runs = [run for trace in traces.values() if (run := trace.verify()) is not None]
    received = ParsedRequest(total=total)
    if len(runs) < len(traces):
        received = read_protobuf(body, without={run.trace_id for run in runs})
    received.runs, received.body = runs, body
    return received


_RUN_SCOPE: Final = b"\x0a" + varint(len(fields.SCOPE_RUN)) + fields.SCOPE_RUN.encode()
"""The name of a scope without which a request has no complete run."""


# Request, resource and scope: fields with tag, length and content, in the order of ``protobuf_writer.request_bytes``.


def _length(body: bytes, position: int) -> tuple[int, int]:
    """Return the length at a position, in as few bytes as possible, and the position behind it."""
    length = shift = 0
    while (byte := body[position]) > 127:
        length |= (byte & 127) << shift
        shift += 7
        position += 1
        if shift > 28:
            raise _Unusual
    if not byte and shift:
        raise _Unusual
    return length | byte << shift, position + 1


def _field(body: bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Return where the content of the field at a position begins and ends. It must have this tag."""
    if body[position] != tag:
        raise _Unusual
    length, start = _length(body, position + 1)
    if start + length > end:
        raise _Unusual
    return start, start + length


def _optional_field(body: bytes, position: int, end: int, tag: int) -> tuple[bytes, int]:
    """Return the content of the field at a position, empty if it has another tag, and the end of the field."""
    if position == end or body[position] != tag:
        return b"", position
    start, end = _field(body, position, end, tag)
    return body[start:end], end


def _read_traces(body: bytes) -> tuple[dict[bytes, _Trace], int]:
    """Return what was read of each trace, and the number of spans."""
    traces: dict[bytes, _Trace] = {}
    total, limit = 0, default_max_spans(len(body))
    end = len(body)
    outer = 0
    while outer < end:
        position, outer = _field(body, outer, end, 0x0A)
        content, position = _optional_field(body, position, outer, 0x0A)
        resource = Resource.FromString(content).SerializeToString(deterministic=True)
        limit -= 1
        while position < outer and body[position] == 0x12:
            position, scope_end = _field(body, position, outer, 0x12)
            content, position = _optional_field(body, position, scope_end, 0x0A)
            add = _READERS.get(InstrumentationScope.FromString(content).name, _Trace.add_foreign)
            limit -= 1
            while position < scope_end and body[position] == 0x12:
                # This is ``_field``, without the cost of calls.
                length = body[position + 1]
                position += 2
                if length > 127:
                    length, position = _length(body, position - 1)
                span = body[position : position + length]
                position += length
                total += 1
                if position > scope_end or total > limit:
                    raise _Unusual
                trace_id = span[2:18]
                trace = traces.get(trace_id)
                if trace is None:
                    trace = traces[trace_id] = _Trace(trace_id, resource)
                try:
                    add(trace, span)
                except _NO_LAYOUT:
                    trace.is_usual = False
                    if WireSpan.FromString(span).trace_id != trace_id:
                        raise _Unusual from None
            position = _end_of_schema_url(body, position, scope_end)
            if total > limit:
                raise _Unusual
        position = _end_of_schema_url(body, position, outer)
        if limit < 0:
            raise _Unusual
    return traces, total


def _end_of_schema_url(body: bytes, position: int, end: int) -> int:
    """Return the end of the last field of a resource or scope, which may be absent."""
    content, position = _optional_field(body, position, end, 0x1A)
    _utf8(content)
    if position != end:
        raise _Unusual
    return position


# Attributes: ``4a LENGTH 0a LENGTH KEY 12 LENGTH VALUE``.


def _key_bytes(key: str) -> bytes:
    """Return the bytes of a key, with tag and length."""
    return b"\x0a" + varint(len(key)) + key.encode()


def _string_heads() -> dict[int, tuple[bytes, int]]:
    """Return the bytes between key and text of a string attribute, and their number, by the bytes after the key."""
    heads = {}
    for length in range(1, fields.MAX_ATTRIBUTE_BYTES + 1):
        value = b"\x0a" + varint(length)
        head = b"\x12" + varint(len(value) + length) + value
        heads[len(head) + length] = head, len(head)
    return heads


_STRING_HEADS: Final = _string_heads()


def _text(attribute: bytes, start: int) -> bytes:
    """Return the text of a string attribute whose key ends at ``start``. It may be invalid UTF-8."""
    head = _STRING_HEADS.get(len(attribute) - start)
    if head is None:
        raise _Unusual
    end = start + head[1]
    if attribute[start:end] != head[0]:
        raise _Unusual
    return attribute[end:]


def _utf8(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise _Unusual from None


def _digits(value: bytes) -> bytes:
    """Return the digits of an integer attribute that is not negative, from the bytes after its key."""
    if not 3 < len(value) < 13 or value[:3] != _INTEGER_HEADS[len(value) - 3]:
        raise _Unusual
    number = value[-1]
    if number > 127 or (not number and len(value) > 4):
        raise _Unusual
    for byte in value[-2:2:-1]:
        if byte < 128:
            raise _Unusual
        number = number << 7 | byte & 127
    return b"%d" % number


_INTEGER_HEADS: Final = [b"\x12" + varint(1 + length) + b"\x18" for length in range(10)]
"""The bytes between key and number of an integer attribute, by the bytes of the number."""

_SCALARS: Final = frozenset({"string_value", "bool_value", "int_value", "double_value"})
_IGNORED: Final = {
    fields.SUMMARY_DIGEST: str,
    semconv.COST: float,
    semconv.CHILD_RUN_ID: str,
    **dict(zip(semconv.RUN_TOTALS, (int, int, float), strict=True)),
}
"""Attributes of runspan on spans of finished runs that the decoder does not read there, with their types."""
_OFTEN_IGNORED: Final = {
    _key_bytes(key): kind
    for key, kind in (*_IGNORED.items(), (semconv.INPUT_TOKENS, int), (semconv.OUTPUT_TOKENS, int))
}
"""Attributes with many values that the decoder does not read."""


def _check_ignored(kind: type, value: bytes) -> None:
    """Raise _Unusual unless the bytes after a key are a value of this type."""
    if kind is int:
        _digits(value)
    elif kind is str:
        _utf8(_text(value, 0))
    elif len(value) != 11 or value[:3] != b"\x12\x09\x21":
        raise _Unusual


@lru_cache(maxsize=4096)
def _is_ignored(attribute: bytes) -> bool:
    """Return whether an attribute is valid, and one that the decoder does not read. ``attribute``: from the key on."""
    try:
        pair = KeyValue.FromString(attribute)
    except DecodeError:
        return False
    return pair.value.WhichOneof("value") in _SCALARS and not pair.key.startswith("runspan.")


# The bytes from the name of a span to its run id are the same on many spans, since only the labels determine them.


class _Labels(NamedTuple):
    """What these bytes say."""

    is_step: bool
    text: bytes
    """The beginning of a step's JSON object, or of a run's members after ``workflowId``."""
    finished: bool = False
    """Whether a step has ended."""
    is_loop: bool = False


class _LabelCache(dict[bytes, _Labels | None]):
    """Labels by bytes, read on first use; None if they are unusual."""

    def __missing__(self, content: bytes) -> _Labels | None:
        labels = _read_labels(content)
        if len(content) > _MAX_LABEL_BYTES:
            return labels  # not cached, since its size has no bound
        if len(self) >= _MAX_LABELS:
            self.clear()
        self[content] = labels
        return labels


_MAX_LABELS: Final = 4096
_MAX_LABEL_BYTES: Final = 2000
_LABELS: Final = _LabelCache()
_STEP_LABELS: Final = fields.STEP_TABLE.labels
_RUN_LABELS: Final = [field for field in fields.RUN_TABLE.labels if field.key != fields.WORKFLOW_ID]
_JSON_NAMES: Final = {
    kind: {field.name: b'"%b":' % field.encode_name.encode() for field in msgspec.structs.fields(kind)}
    for kind in (Envelope, Step)
}
"""The name of each member in a document's text."""


def _read_labels(content: bytes) -> _Labels | None:
    try:
        _require_fields(content, b"\x2a\x4a")
        span = WireSpan.FromString(content)
    except (_Unusual, IndexError, DecodeError):
        return None
    values: dict[str, Any] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        if attribute.key in values or kind not in _SCALARS:
            return None
        values[attribute.key] = getattr(attribute.value, kind)
    role = values.pop(fields.ROLE, None)
    is_step = role == fields.ROLE_STEP
    if not is_step and (role != fields.ROLE_RUN or values.pop(fields.REVISION, None) != fields.ROOT_REVISION):
        return None
    table = _STEP_LABELS if is_step else _RUN_LABELS
    labels = [(field.member, values.pop(field.key, msgspec.UNSET)) for field in table]
    found = [(member, value) for member, value in labels if value is not msgspec.UNSET]
    if any(type(value) is not str for _, value in found) or any(key.startswith("runspan.") for key in values):
        return None
    names = _JSON_NAMES[Step if is_step else Envelope]
    texts = [names[member] + _json(value) for member, value in found]
    if not is_step:
        return _Labels(False, b"".join([b"," + text for text in texts]))
    if found[:1] != labels[:1]:  # a step without an id
        return None
    template = STEP_TEMPLATES[tuple([value for _, value in labels])]
    return _Labels(True, b"{" + b",".join(texts), template.finished, template.is_loop)


# The attributes after the run id.

_StepContents = tuple[bytes, int | None, int | None]
"""The JSON text of a step, and its start and end in nanoseconds since 1970, None if they are absent or unusable."""

_INTEGER, _PAYLOAD = fields.FieldKind.INTEGER, fields.FieldKind.PAYLOAD
_Member = tuple[int, bytes, fields.FieldKind]
"""Place in the document's text, name there, and kind of a member."""


def _members(table: fields.Table, kind: type[Envelope] | type[Step]) -> dict[bytes, _Member]:
    """Return the members that are attributes by the bytes of their keys."""
    names = _JSON_NAMES[kind]
    order = list(names)
    return {
        _key_bytes(field.key): (order.index(field.member), b"," + names[field.member], field.kind)
        for field in table.values
    }


_STEP_MEMBERS: Final = _members(fields.STEP_TABLE, Step)
_RUN_MEMBERS: Final = _members(fields.RUN_TABLE, Envelope)
_RUN_ID, _WORKFLOW_ID, _DIGEST, _TENANT, _STEP_COUNT, _MANIFEST = (
    _key_bytes(key)
    for key in (fields.RUN_ID, fields.WORKFLOW_ID, fields.DIGEST, fields.TENANT, fields.STEP_COUNT, fields.MANIFEST)
)
_STEP_TIMES, _RUN_TIMES = (
    (_key_bytes(table.start.key + fields.NON_CANONICAL), _key_bytes(table.end.key + fields.NON_CANONICAL))
    for table in (fields.STEP_TABLE, fields.RUN_TABLE)
)
"""The keys of start and end as texts of their own."""
_STEP_OTHERS: Final = frozenset(_STEP_TIMES)
_RUN_OTHERS: Final = frozenset({*_RUN_TIMES, _DIGEST, _TENANT, _STEP_COUNT, _MANIFEST})
_TASK_RUN_ID: Final = string_prefix(IN_SPAN, semconv.TASK_RUN_ID, 16)
_WORKFLOW_NAME: Final = b"," + _JSON_NAMES[Envelope]["workflow_id"]
_ID_NAME, _STEPS_NAME = b"{" + _JSON_NAMES[Envelope]["id"], b"," + _JSON_NAMES[Envelope]["steps"]

_STEP_HEAD: Final = Struct("<2s16s2s8s2s8sBQBQ")
_RUN_HEAD: Final = Struct("<2s16s2s8sBQBQ")
_TIMES: Final = Struct("<BQBQ")
_MAX_IGNORED: Final = 1000
_MAX_END_BYTES: Final = 4000
"""Attributes of a span that the decoder ignores, and bytes after them: fewer parts than ``protobuf_reader`` takes."""
_TEXT_KEY: Final = fields.TEXT_KEY.encode()


def _read_members(
    span: bytes, position: int, known: dict[bytes, _Member], also: frozenset[bytes], members: list[bytes]
) -> dict[bytes, bytes]:
    """Append names and texts of the members from a position on, check the end of the span, and return the attributes
    in ``also`` by key, from the key on.

    Raise an error of ``_NO_LAYOUT`` for an attribute that is neither known nor ignored, and for one that occurs twice.
    """
    others: dict[bytes, bytes] = {}
    last = ignored = 0
    while span[position] == 0x4A:
        length = span[position + 1]
        start = position + 2
        if length > 127:
            length, start = _length(span, position + 1)
        position = start + length
        key_end = start + 2 + span[start + 1]
        key = span[start:key_end]
        if key in known:
            place, name, kind = known[key]
            if place <= last:
                raise _Unusual
            last = place
            if kind is _INTEGER:
                members += (name, _digits(span[key_end:position]))
                continue
            head, length = _STRING_HEADS[position - key_end]
            text_start = key_end + length
            if span[key_end:text_start] != head:
                raise _Unusual
            text = span[text_start:position]
            members += (name, text if kind is _PAYLOAD else _json(_utf8(text)))
        elif key in also:
            if key in others:
                raise _Unusual
            others[key] = span[start:position]
        else:
            ignored += 1
            if ignored > _MAX_IGNORED:
                raise _Unusual
            if key in _OFTEN_IGNORED:
                _check_ignored(_OFTEN_IGNORED[key], span[key_end:position])
            elif not (_is_ignored if length < 200 else _is_ignored.__wrapped__)(span[start:position]):
                raise _Unusual
    if span[position:] != PLAIN_END:
        _check_end(span[position:])
    return others


# Times.


class _Minutes(dict[int, bytes]):
    """The text of a canonical timestamp up to its seconds, by minutes since 1970."""

    def __missing__(self, minute: int) -> bytes:
        text = canonical_text(minute * 60 * SECOND)
        if text is None:
            raise _Unusual
        if len(self) >= _MAX_MINUTES:
            self.clear()
        self[minute] = found = text[:17].encode()
        return found


_MAX_MINUTES: Final = 10_000
_MINUTES: Final = _Minutes()
_SECONDS: Final = [b"%02d" % second for second in range(60)]
_FRACTIONS: Final = [b".%03dZ" % ms for ms in range(1000)]
_START_NAME, _END_NAME = (b"," + _JSON_NAMES[Step][name] for name in ("started_at", "completed_at"))
_BOTH_TIMES: Final = _START_NAME + b'"%b%b%b"' + _END_NAME + b'"%b%b%b"'
_ABSENT: Final = fields.ABSENT.encode()


def _times(start: int, end: int) -> bytes:
    """Return names and texts of both times of a span, which must be canonical."""
    if start % MILLISECOND or end % MILLISECOND:
        raise _Unusual
    second, ms = divmod(start // MILLISECOND, 1000)
    minute, second = divmod(second, 60)
    end_second, end_ms = divmod(end // MILLISECOND, 1000)
    end_minute, end_second = divmod(end_second, 60)
    return _BOTH_TIMES % (
        _MINUTES[minute],
        _SECONDS[second],
        _FRACTIONS[ms],
        _MINUTES[end_minute],
        _SECONDS[end_second],
        _FRACTIONS[end_ms],
    )


def _other_time(name: bytes, key: bytes, ns: int, others: dict[bytes, bytes]) -> tuple[bytes, int | None]:
    """Return name and text of a time, and its nanoseconds if it is usable.

    They are those of the attribute with this key, if there is one, else the span's own.
    """
    if key not in others:
        canonical = canonical_text(ns)
        if canonical is None:
            raise _Unusual
        return b'%b"%b"' % (name, canonical.encode()), ns
    text = _text(others[key], len(key))
    if text == _ABSENT:
        return b"", None
    return name + text, time_ns(_utf8(text[1:-1]))


def _check_end(content: bytes) -> None:
    """Raise _Unusual unless the bytes after the attributes are events, links, status and flags, without a member."""
    if len(content) > _MAX_END_BYTES or _TEXT_KEY in content:
        raise _Unusual
    _require_fields(content, b"\x5a\x6a\x7a")
    try:
        WireSpan.FromString(content)
    except DecodeError:
        raise _Unusual from None


def _require_fields(content: bytes, tags: bytes) -> None:
    """Raise _Unusual unless the bytes are fields of a span with these tags, kinds and flags.

    Any other one may replace the same field at another place, also with a default value, which no parsed span shows.
    """
    position = 0
    while position < len(content):
        tag = content[position]
        if tag in tags:
            _, position = _field(content, position, len(content), tag)
        elif tag == _KIND and content[position + 1] < 128:
            position += 2
        elif content.startswith(_FLAGS, position):
            position += len(_FLAGS) + 4
        else:
            raise _Unusual
    if position > len(content):
        raise _Unusual


_KIND: Final = 0x30
_FLAGS: Final = b"\x85\x01"


class _Trace:
    """The spans of one trace while a request is read."""

    __slots__ = (
        "_before",
        "_has_loops",
        "_identity",
        "_may_have_content_ids",
        "_root",
        "_run_id",
        "_steps",
        "_workflow",
        "is_usual",
        "resource",
        "trace_id",
    )

    def __init__(self, trace_id: bytes, resource: bytes) -> None:
        self.trace_id = trace_id
        self.resource = resource
        self.is_usual = True
        self._run_id = b""
        self._identity = b""
        """The attributes with the labels of the run that all spans of the trace have, the run id first."""
        self._before = 0
        """Bytes of it before the key of the run id."""
        self._workflow = b""
        self._steps: dict[bytes, _StepContents] = {}
        """The steps by the id of their span."""
        self._root: tuple[bytes, dict[bytes, bytes], int, int | None, int | None] | None = None
        """Text of the run's members, proofs, start of the run span, and start and end of the run."""
        self._may_have_content_ids = True
        self._has_loops = False

    def add_foreign(self, span: bytes) -> None:
        """Raise _Unusual."""
        raise _Unusual

    def add_step(self, span: bytes) -> None:
        """Read a step span. Raise an error of ``_NO_LAYOUT`` if it does not have the layout."""
        if len(span) < 56:
            raise _Unusual
        trace_tag, _, id_tag, span_id, parent_tag, _, start_tag, start, end_tag, end = _STEP_HEAD.unpack_from(span)
        position, name = 56, b""
        if start_tag != START_TAG:
            name, start_tag, start, end_tag, end, position = _times_after_name(span, 38)
        if trace_tag != TRACE_ID or id_tag != SPAN_ID or parent_tag != PARENT_ID or start_tag != START_TAG:
            raise _Unusual
        if end_tag != END_TAG or start > MAX_NS or end > LATEST_END_NS or span_id == NO_SPAN_ID:
            raise _Unusual
        labels, position = self._read_labels(span, position, name)
        if not labels.is_step or span_id in self._steps:
            raise _Unusual
        task_run_id = _TASK_RUN_ID + span_id.hex().encode()
        if span.startswith(task_run_id, position):
            position += len(task_run_id)
        parts = [labels.text, b""]
        others = _read_members(span, position, _STEP_MEMBERS, _STEP_OTHERS, parts)
        started: int | None = start
        ended: int | None = end
        if others:
            start_text, started = _other_time(_START_NAME, _STEP_TIMES[0], start, others)
            end_text, ended = _other_time(_END_NAME, _STEP_TIMES[1], end, others)
            parts[1] = start_text + end_text
        else:
            parts[1] = _times(start, end)
        parts.append(b"}")
        self._steps[span_id] = b"".join(parts), started, ended
        if not labels.finished:
            self._may_have_content_ids = False
        if labels.is_loop:
            self._has_loops = True

    def add_run(self, span: bytes) -> None:
        """Read a run span. Raise an error of ``_NO_LAYOUT`` if it does not have the layout."""
        if len(span) < 46 or self._root is not None:
            raise _Unusual
        trace_tag, _, id_tag, span_id, start_tag, start, end_tag, end = _RUN_HEAD.unpack_from(span)
        position, name = 46, b""
        if start_tag != START_TAG:
            name, start_tag, start, end_tag, end, position = _times_after_name(span, 28)
        if trace_tag != TRACE_ID or id_tag != SPAN_ID or start_tag != START_TAG or end_tag != END_TAG:
            raise _Unusual
        if start > MAX_NS or end > LATEST_END_NS or span_id == NO_SPAN_ID:
            raise _Unusual
        labels, position = self._read_labels(span, position, name)
        if labels.is_step:
            raise _Unusual
        parts = [self._workflow, labels.text, b""]
        others = _read_members(span, position, _RUN_MEMBERS, _RUN_OTHERS, parts)
        start_text, started = _other_time(_START_NAME, _RUN_TIMES[0], start, others)
        end_text, ended = _other_time(_END_NAME, _RUN_TIMES[1], end, others)
        parts[2] = start_text + end_text
        self._root = b"".join(parts), others, start, started, ended

    def _read_labels(self, span: bytes, position: int, name: bytes) -> tuple[_Labels, int]:
        """Return the labels, and where the attributes begin that follow those which all spans of the trace have.

        ``name``: the bytes of name and kind, if they are not at the position.
        """
        key = span.index(_RUN_ID, position)
        identity = self._identity or self._read_identity(span, key)
        before = key - self._before
        labels = _LABELS[name + span[position:before]]
        if labels is None or not span.startswith(identity, before):
            raise _Unusual
        return labels, before + len(identity)

    def _read_identity(self, span: bytes, key: int) -> bytes:
        """Return the labels of the run from the first span of the trace. ``key``: where the key of the run id is."""
        self._before = 2 if span[key - 2] == 0x4A else 3
        begin = key - self._before
        start, end = _field(span, begin, len(span), 0x4A)
        self._run_id = _text(span[start:end], len(_RUN_ID))
        pipeline = string_prefix(IN_SPAN, semconv.PIPELINE_RUN_ID, len(self._run_id)) + self._run_id
        if start != key or not span.startswith(pipeline, end):
            raise _Unusual
        end += len(pipeline)
        start, after = _field(span, end, len(span), 0x4A)
        if span.startswith(_WORKFLOW_ID, start):
            text = _text(span[start:after], len(_WORKFLOW_ID))
            self._workflow = _WORKFLOW_NAME + _json(_utf8(text))
            end = after
        self._identity = span[begin:end]
        return self._identity

    def verify(self) -> ReceivedRun | None:
        """Return the run; None if the spans are not exactly those of a complete run, or not usual."""
        if self._root is None or not self.is_usual:
            return None
        try:
            return self._verify(*self._root)
        except (*_NO_LAYOUT, DocumentError):
            return None

    def _verify(
        self, members: bytes, proofs: dict[bytes, bytes], start: int, started: int | None, ended: int | None
    ) -> ReceivedRun:
        run_id = _utf8(self._run_id)
        tenant = _utf8(_text(proofs[_TENANT], len(_TENANT))) if _TENANT in proofs else ""
        ids = run_ids(run_id, tenant)
        manifest = _text(proofs[_MANIFEST], len(_MANIFEST)) if _MANIFEST in proofs else b""
        step_ids = _split_ids(manifest)
        count = len(step_ids)
        if ids.trace_id != self.trace_id or _digits(proofs[_STEP_COUNT][len(_STEP_COUNT) :]) != b"%d" % count:
            raise _Unusual
        if count != len(self._steps):
            raise _Unusual
        steps = [self._steps[span_id] for span_id in step_ids]
        texts = [text for text, _, _ in steps]
        text = b"".join((_ID_NAME, _json(run_id), members, _STEPS_NAME, b"[", b",".join(texts), b"]}"))
        digest = sha256(text).digest()
        if _text(proofs[_DIGEST], len(_DIGEST)) != digest.hex().encode():
            raise _Unusual
        run = Run(*parse_document(text))
        if not run.plain or run.text != text or len(run.steps) != count:
            raise _Unusual
        return ReceivedRun(
            run=run,
            tenant=tenant,
            trace_id=self.trace_id,
            digest=digest,
            step_ids=step_ids,
            has_content_ids=self._may_have_content_ids
            and (started or sort_time(run.envelope)) == start
            and _have_content_ids(run, ids.seed, start, ended, steps, step_ids, has_loops=self._has_loops),
            position=start,
            resource=self.resource,
        )


def _have_content_ids(
    run: Run,
    seed: int,
    start: int,
    end: int | None,
    steps: list[_StepContents],
    step_ids: list[bytes],
    *,
    has_loops: bool,
) -> bool:
    """Return whether the span ids are those that ``StepLayout.span_ids`` assigns to different steps that have ended.

    - ``seed``: that of the run's ids.
    - ``start``, ``end``: where the run lies in time, and its end, in nanoseconds since 1970.
    """
    if not run.finished:
        return False
    seed ^= start ^ run_template(True, fields.RUN_TABLE.get_labels(run.envelope)).salt
    seeds = [seed] * len(steps)
    if has_loops or any(started is None and ended is None for _, started, ended in steps):
        intervals = [Interval(started, ended) for _, started, ended in steps]
        found = positions(intervals, start, end)
        for index, position in found.items():
            seeds[index] ^= position
        if has_loops:
            for index, loop in enclosing_loops(run.steps, intervals, found, [True] * len(steps)).items():
                seeds[index] ^= int.from_bytes(step_ids[loop], "big")
    return [step_digest(text, seed) for (text, _, _), seed in zip(steps, seeds, strict=True)] == step_ids


_READERS: Final = {fields.SCOPE_STEP: _Trace.add_step, fields.SCOPE_RUN: _Trace.add_run}


def _times_after_name(span: bytes, position: int) -> tuple[bytes, int, int, int, int, int]:
    """Return the bytes of name and kind, the times with their tags, and where these end.

    Other writers than ``protobuf_writer`` write the fields in the order of their numbers, for example the Collector.
    """
    _, end = _field(span, position, len(span), 0x2A)
    end += 2  # the kind
    if len(span) < end + 18:
        raise _Unusual
    return span[position:end], *_TIMES.unpack_from(span, end), end + 18


def _split_ids(manifest: bytes) -> list[bytes]:
    """Return the span ids of a manifest without open steps, each of which is there once."""
    try:
        packed = bytes.fromhex(manifest.decode())
    except ValueError:
        raise _Unusual from None
    if packed.hex().encode() != manifest or len(packed) % 8:
        raise _Unusual
    step_ids = [packed[start : start + 8] for start in range(0, len(packed), 8)]
    if len(set(step_ids)) != len(step_ids):
        raise _Unusual
    return step_ids
