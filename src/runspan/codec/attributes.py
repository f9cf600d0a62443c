"""Conversion of document members to span attributes and back, one kind of field at a time; no I/O.

``encode_text``, ``encode_value`` and ``encode_times`` append attributes; ``decode_text``, ``decode_value`` and
``decode_time`` are their inverses. ``decode_members`` and ``decode_step`` read all members of a span at once, by the
tables in ``fields``. Ids, names, types and statuses recur in every run of a workflow, so the span name and attributes
derived from them are computed once, as templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from runspan.codec.fields import (
    ABSENT,
    MAX_ATTRIBUTE_BYTES,
    NON_CANONICAL,
    PARTS,
    REVISION,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    ROOT_REVISION,
    RUN_TABLE,
    STEP_EXTRA,
    STEP_TABLE,
    WORKFLOW_ID,
    Field,
    FieldKind,
    Table,
)
from runspan.codec.semconv import RUN_ERRORS, RUN_RESULTS, STEP_ERRORS, STEP_RESULTS
from runspan.model.document import TERMINAL_STEP_STATUSES, Step, parse_document, with_extra_step
from runspan.model.span import INTERNAL, SERVER, Attributes, Pairs, Span, Value, hash_parts
from runspan.model.timestamps import canonical_ns, canonical_text, parse_ns

_json = msgspec.json.encode
_INT64 = 1 << 63
_PAYLOAD, _INTEGER = FieldKind.PAYLOAD, FieldKind.INTEGER


class AttributeDecodeError(Exception):
    """An attribute is missing, or has a value that ``encode`` never writes."""


# Text, split at code points into parts that every backend keeps.


def encode_text(pairs: Pairs, key: str, text: bytes | Raw) -> None:
    """Append a text, in numbered parts if it is long. It must not be empty: stores drop empty strings."""
    if type(text) is not Raw:
        text = Raw(text)
    if memoryview(text).nbytes <= MAX_ATTRIBUTE_BYTES:
        pairs.append((key, text))
        return
    parts = list(_split(bytes(text)))
    pairs.append((key, parts[0]))
    pairs.extend((f"{key}.{number}", part) for number, part in enumerate(parts[1:], 1))
    pairs.append((key + PARTS, len(parts)))


def decode_text(attributes: Mapping[str, Value], key: str) -> bytes | None:
    """Return the text with its parts joined, or None if there is none. Raises AttributeDecodeError."""
    first = attributes.get(key)
    count = attributes.get(key + PARTS)
    if count is None:
        if first is None:
            return None
        return _part(attributes, key)
    if type(count) is not int or count < 1:
        raise AttributeDecodeError(f"attribute {key}{PARTS} is not a count")
    return b"".join([_part(attributes, f"{key}.{number}" if number else key) for number in range(count)])


def _split(text: bytes) -> Iterator[Raw]:
    start = 0
    while start < len(text):
        end = min(start + MAX_ATTRIBUTE_BYTES, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield Raw(text[start:end])
        start = end


def _part(attributes: Mapping[str, Value], key: str) -> bytes:
    value = attributes.get(key)
    if type(value) is Raw:
        return bytes(value)
    if type(value) is not str:
        problem = "is missing" if value is None else "is not a string"
        raise AttributeDecodeError(f"attribute {key} {problem}")
    return value.encode()


# The JSON text of a member that has no canonical form.


def _encode_non_canonical(pairs: Pairs, key: str, value: Any) -> None:
    encode_text(pairs, key + NON_CANONICAL, value if type(value) is Raw else _json(value))


def _decode_non_canonical(attributes: Mapping[str, Value], key: str) -> Any:
    """Return ``Raw``, a string or None; UNSET if there is no such attribute."""
    text = decode_text(attributes, key + NON_CANONICAL)
    return UNSET if text is None else _string_or_raw(text)


def _string_or_raw(text: bytes) -> Any:
    if text == b"null":
        return None
    if text.startswith(b'"'):
        try:
            return msgspec.json.decode(text, type=str)
        except (msgspec.MsgspecError, ValueError):
            return Raw(text)  # a lone surrogate, which JSON can represent and UTF-8 cannot
    return Raw(text)


# Members that have an attribute of their own.


def encode_value(pairs: Pairs, field: Field, value: Any) -> None:
    """Append a member of the kinds LABEL, TEXT, INTEGER and PAYLOAD. UNSET appends nothing."""
    if value is UNSET:
        return
    if field.kind is _PAYLOAD:
        encode_text(pairs, field.key, value)
    elif field.kind is _INTEGER:
        number = _parse_int64(bytes(value))
        if number is None:
            _encode_non_canonical(pairs, field.key, value)
        else:
            pairs.append((field.key, number))
    elif type(value) is str and 0 < len(value) <= MAX_ATTRIBUTE_BYTES // 4:
        pairs.append((field.key, value))
    else:
        _encode_non_canonical(pairs, field.key, value)


def decode_value(attributes: Mapping[str, Value], field: Field) -> Any:
    """Return the member as the document classes hold it, or UNSET if the document does not have it."""
    if field.kind is _PAYLOAD:
        text = decode_text(attributes, field.key)
        return UNSET if text is None else Raw(text)
    value = attributes.get(field.key)
    if field.kind is _INTEGER:
        if type(value) is int:
            return Raw(b"%d" % value)
        text = decode_text(attributes, field.key + NON_CANONICAL)
        return UNSET if text is None else Raw(text)
    if type(value) is str:
        return value
    return _decode_non_canonical(attributes, field.key)


def _parse_int64(text: bytes) -> int | None:
    """Return the integer if the text is the shortest one of a 64-bit integer, else None."""
    if text.isdigit() and len(text) < 19 and (text[0] != 0x30 or len(text) == 1):
        return int(text)
    digits = text[1:] if text[:1] == b"-" else text
    if digits.isdigit() and digits[0] != 0x30 and len(digits) <= 19:
        number = int(text)
        return number if -_INT64 <= number < _INT64 else None
    return None


# Times, carried by the span's own start and end if they are canonical.


def encode_times(
    pairs: Pairs,
    table: Table,
    started: Any,
    completed: Any,
    fallback: int,
    observed_at: int | None = None,
    *,
    start_at_fallback: bool = False,
) -> tuple[int, int]:
    """Return the span's start and end in nanoseconds, and append the times that these cannot carry.

    The end is always after the start, because Jaeger moves any other end.

    - ``fallback``: the start if the document has no usable time.
    - ``observed_at``: the end of a snapshot span, regardless of the document.
    - ``start_at_fallback``: use the fallback, not the end, if there is no start. Lists search revision spans by start.
    """
    start_ns = canonical_ns(started) if type(started) is str else None
    end_ns = canonical_ns(completed) if type(completed) is str else None
    if start_ns is not None and end_ns is not None and end_ns > start_ns and observed_at is None:
        return start_ns, end_ns
    last = end_ns if end_ns is not None else _approximate_ns(completed)
    first = start_ns if start_ns is not None else _approximate_ns(started)
    if first is None:
        first = fallback if last is None or start_at_fallback else last
    if start_ns is None:
        _encode_time(pairs, table.start, started)
    if observed_at is not None:
        last, end_ns = observed_at, None
    if last is None or last <= first:
        last, end_ns = first + 1, None
    if end_ns is None:
        _encode_time(pairs, table.end, completed)
    return first, last


def _encode_time(pairs: Pairs, field: Field, value: Any) -> None:
    if value is UNSET:
        pairs.append((field.key + NON_CANONICAL, ABSENT))
    else:
        _encode_non_canonical(pairs, field.key, value)


def decode_time(attributes: Mapping[str, Value], field: Field, ns: int) -> Any:
    """Return the time as the document has it: that of the attribute if there is one, else the span's own."""
    text = decode_text(attributes, field.key + NON_CANONICAL)
    if text is not None:
        return UNSET if text == ABSENT.encode() else _string_or_raw(text)
    canonical = canonical_text(ns)
    if canonical is None:
        raise AttributeDecodeError(f"the span's {field.kind.name.lower()} was changed")
    return canonical


def _approximate_ns(value: Any) -> int | None:
    return parse_ns(value) if type(value) is str else None


# All members of a span.


class _Never:
    """A type that no attribute value has."""


def _canonical_forms(table: Table) -> dict[str, tuple[str, type, FieldKind]]:
    """Return member, value type and kind by attribute key.

    The keys that mark a member as non-canonical or split have the type ``_Never``, so that they fail the type check.
    """
    forms: dict[str, tuple[str, type, FieldKind]] = {
        field.key: (field.member, int if field.kind is _INTEGER else str, field.kind)
        for field in (*table.labels, *table.values)
    }
    for field in table.fields:
        for suffix in (NON_CANONICAL, PARTS):
            forms[field.key + suffix] = "", _Never, field.kind
    return forms


_CANONICAL_FORMS = {table: _canonical_forms(table) for table in (RUN_TABLE, STEP_TABLE)}


def decode_members(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """Return the members of a run or step span by their names in the document classes. Raises AttributeDecodeError."""
    start, end = canonical_text(span.start), canonical_text(span.end)
    if start is None or end is None:
        return _decode_field_by_field(attributes, table, span)
    values: dict[str, Any] = {table.start.member: start, table.end.member: end}
    get_form = _CANONICAL_FORMS[table].get
    for key, value in attributes.items():
        form = get_form(key)
        if form is None:
            continue
        member, expected, kind = form
        if type(value) is not expected:
            return _decode_field_by_field(attributes, table, span)
        if kind is _PAYLOAD:
            values[member] = Raw(value.encode())  # type: ignore[union-attr]
        elif kind is _INTEGER:
            values[member] = Raw(str(value).encode())
        else:
            values[member] = value
    return values


def _decode_field_by_field(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """Do the work of ``decode_members`` for spans with a member that is non-canonical, split or absent."""
    values: dict[str, Any] = {}
    try:
        for field in (*table.labels, *table.values):
            value = decode_value(attributes, field)
            if value is not UNSET:
                values[field.member] = value
        for field, ns in ((table.start, span.start), (table.end, span.end)):
            value = decode_time(attributes, field, ns)
            if value is not UNSET:
                values[field.member] = value
    except AttributeDecodeError as error:
        raise AttributeDecodeError(f"span {span.span_id.hex()}: {error}") from None
    return values


def decode_step(span: Span, attributes: Mapping[str, Value] | None = None) -> Step:
    """Return the step of a step span. Raises AttributeDecodeError."""
    attributes = span.attributes() if attributes is None else attributes
    values = decode_members(attributes, STEP_TABLE, span)
    if "id" not in values:
        raise AttributeDecodeError(f"span {span.span_id.hex()}: the step's id is missing")
    return with_extra_step(Step(**values), decode_extra(attributes, STEP_EXTRA))


def parse_open_step(text: str) -> Step:
    """Return the step of a canonical text. Raises DocumentError or ValueError."""
    envelope, _, _ = parse_document('{"id":"_","steps":[' + text + "]}")
    if type(envelope.steps) is not list or len(envelope.steps) != 1:
        raise ValueError(text)
    return envelope.steps[0]


def encode_extra(pairs: Pairs, key: str, extra: bytes) -> None:
    """Append the unknown members as one JSON object; nothing if there are none."""
    if extra:
        encode_text(pairs, key, b"{" + extra + b"}")


def decode_extra(attributes: Mapping[str, Value], key: str) -> bytes:
    """Return the text of the unknown members without the object's braces; empty if there are none."""
    return (decode_text(attributes, key) or b"")[1:-1]


_MAX_TEMPLATES = 4096
"""Entries per cache. With names of ``_MAX_NAME_LENGTH`` characters that is a few megabytes."""
_MAX_NAME_LENGTH = 500
"""Characters of a label in span names and ``cicd.*`` attributes: at most 2000 bytes."""


class SpanTemplate:
    """The parts of a span that its labels determine."""

    __slots__ = (
        "error_type",
        "finished",
        "identity",
        "is_agent",
        "is_sub_workflow",
        "kind",
        "name",
        "salt",
        "shared",
        "special",
        "wire",
    )

    def __init__(self, name: str, kind: int, pairs: Pairs, error_type: str | None, step_type: object = None) -> None:
        self.name = name
        self.kind = kind
        self.shared = Attributes(pairs)
        self.error_type = error_type
        """The default ``error.type`` if the status is an error, else None."""
        self.is_agent = step_type == "agent"
        self.is_sub_workflow = step_type == "sub-workflow"
        self.special = self.is_agent or self.is_sub_workflow or error_type is not None
        """Whether the span has attributes, links or a status derived from its payloads."""
        self.finished = False
        """Whether a step has ended."""
        self.identity = Attributes([])
        """The labels of a run that are on all of its spans."""
        self.salt = 0
        """64 bits of the digest of ``identity``."""
        self.wire: bytes | None = None
        """The OTLP bytes of name, kind and ``shared``, cached by a writer."""


class _TemplateCache(dict[tuple[Any, ...], SpanTemplate]):
    """Templates by the values of their labels, created on first use."""

    def __init__(self, create: Callable[..., SpanTemplate]) -> None:
        super().__init__()
        self._create = create

    def __missing__(self, key: tuple[Any, ...]) -> SpanTemplate:
        template = self._create(*key)
        if sum([len(value) for value in key if type(value) is str]) > _MAX_NAME_LENGTH:
            return template  # not cached, since its size has no bound
        if len(self) >= _MAX_TEMPLATES:
            self.clear()
        self[key] = template
        return template


def _create_step_template(*values: Any) -> SpanTemplate:
    pairs: Pairs = [(ROLE, ROLE_STEP)]
    members: dict[str, Any] = {}
    for field, value in zip(STEP_TABLE.labels, values, strict=True):
        encode_value(pairs, field, value)
        members[field.member] = value
    labels = (members["name"], members["id"], "step")
    name = next(text[:_MAX_NAME_LENGTH] for text in labels if type(text) is str and text)
    kind = members["type"] if type(members["type"]) is str else None
    status = members["status"] if type(members["status"]) is str else ""
    pairs.append(("cicd.pipeline.task.name", name))
    if status in STEP_RESULTS:
        pairs.append(("cicd.pipeline.task.run.result", STEP_RESULTS[status]))
    if kind == "agent":
        pairs += [("gen_ai.operation.name", "invoke_agent"), ("gen_ai.agent.name", name)]
        name = f"invoke_agent {name}"
    template = SpanTemplate(name, INTERNAL, pairs, STEP_ERRORS.get(status), kind)
    template.finished = status in TERMINAL_STEP_STATUSES
    return template


def _create_run_template(is_root: bool, *values: Any) -> SpanTemplate:
    pairs: Pairs = [(ROLE, ROLE_RUN), (REVISION, ROOT_REVISION)] if is_root else [(ROLE, ROLE_REVISION)]
    members: dict[str, Any] = {}
    identity: Pairs = []
    for field, value in zip(RUN_TABLE.labels, values, strict=True):
        encode_value(identity if field.key == WORKFLOW_ID else pairs, field, value)
        members[field.member] = value
    workflow = members["workflow_id"]
    status = members["status"] if type(members["status"]) is str else ""
    pipeline = workflow[:_MAX_NAME_LENGTH] if type(workflow) is str and workflow else "workflow"
    pairs.append(("cicd.pipeline.name", pipeline))
    if status in RUN_RESULTS:
        pairs.append(("cicd.pipeline.result", RUN_RESULTS[status]))
    name = f"run {pipeline}" if is_root else f"snapshot {pipeline}"
    template = SpanTemplate(name, SERVER if is_root else INTERNAL, pairs, RUN_ERRORS.get(status))
    template.identity = Attributes(identity)
    parts = [(key, bytes(value) if type(value) is Raw else str(value).encode()) for key, value in identity]
    template.salt = hash_parts(*[part for key, value in parts for part in (key.encode(), value)])
    return template


STEP_TEMPLATES = _TemplateCache(_create_step_template)
"""The templates of steps by the values of ``STEP_TABLE.labels``. TypeError for ``Raw``, a non-canonical value."""
ROOT_TEMPLATES = _TemplateCache(lambda *values: _create_run_template(True, *values))
"""The templates of root spans by the values of ``RUN_TABLE.labels``. TypeError as for steps."""
_REVISION_TEMPLATES = _TemplateCache(lambda *values: _create_run_template(False, *values))


def step_template(values: tuple[Any, ...]) -> SpanTemplate:
    """Return the template of a step for the values of ``STEP_TABLE.labels``, canonical or not."""
    try:
        return STEP_TEMPLATES[values]
    except TypeError:
        return _create_step_template(*values)


def run_template(is_root: bool, values: tuple[Any, ...]) -> SpanTemplate:
    """Return the template of a revision span for the values of ``RUN_TABLE.labels``, canonical or not."""
    try:
        return (ROOT_TEMPLATES if is_root else _REVISION_TEMPLATES)[values]
    except TypeError:
        return _create_run_template(is_root, *values)
