"""Conversion of document members to span attributes and back, one kind of field at a time; no I/O.

``encode_text``, ``encode_value`` and ``encode_times`` append attributes; ``decode_text``, ``decode_value`` and
``decode_time`` are their inverses. ``decode_members`` and ``decode_step`` read all members of a span at once, by the
tables in ``fields``. Ids, names, types and statuses recur in every run of a workflow, so the span name and attributes
derived from them are computed once, as templates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from runspan.codec import fields
from runspan.codec.placement import LOOP
from runspan.codec.semconv import PIPELINE_NAME, RUN_ERRORS, RUN_RESULTS, RUN_STATES, STEP_ERRORS, STEP_RESULTS
from runspan.errors import PARSE_ERRORS
from runspan.model.document import TERMINAL_STEP_STATUSES, Step, parse_document, time_ns, with_extra_step
from runspan.model.span import INTERNAL, SERVER, Attributes, Event, Pairs, Span, Value, hash_parts, to_plain
from runspan.model.timestamps import canonical_ns, canonical_text

_json = msgspec.json.encode
_INT64 = 1 << 63
_PAYLOAD, _INTEGER = fields.FieldKind.PAYLOAD, fields.FieldKind.INTEGER
_PREVIEW_BYTES = 500


class AttributeDecodeError(Exception):
    """An attribute is missing, or has a value that ``encode`` never writes."""


class SpanContent:
    """The attributes of a span while they are collected, and its texts that are too long for an attribute."""

    __slots__ = ("pairs", "texts")

    def __init__(self) -> None:
        self.pairs: Pairs = []
        self.texts: list[tuple[str, bytes]] = []
        """Keys and texts, for ``text_events``."""


# Text. Long ones are split at code points into pieces that every backend keeps, in events below the attributes.


def encode_text(content: SpanContent, key: str, text: bytes | Raw, *, preview: bool = True) -> None:
    """Append a text. It must not be empty: stores drop empty strings.

    If it is too long for one attribute, append its size and, with ``preview``, its beginning.
    """
    if type(text) is not Raw:
        text = Raw(text)
    size = memoryview(text).nbytes
    if size <= fields.MAX_ATTRIBUTE_BYTES:
        content.pairs.append((key, text))
        return
    plain = bytes(text)
    content.pairs.append((key + fields.SIZE, size))
    if preview:
        content.pairs.append((key + fields.PREVIEW, next(_split(plain, _PREVIEW_BYTES)).decode() + "…"))
    content.texts.append((key, plain))


def text_events(texts: Iterable[tuple[str, bytes]], time: int) -> tuple[Event, ...]:
    """Return the events that carry long texts, named after the members. ``time`` is in nanoseconds since 1970."""
    events = []
    for key, text in texts:
        name = key.removeprefix("runspan.").removeprefix("run.").removeprefix("step.")
        pieces = _split(text, fields.MAX_ATTRIBUTE_BYTES)
        for number in count():
            group = enumerate(islice(pieces, fields.MAX_EVENT_PIECES))
            numbered = [(f"{fields.TEXT_PIECE}{at}", piece.decode()) for at, piece in group]
            if not numbered:
                break
            events.append(Event(name, time, ((fields.TEXT_KEY, key), (fields.TEXT_NUMBER, number), *numbered)))
    return tuple(events)


def read_attributes(span: Span) -> dict[str, Value]:
    """Return the attributes of a span as plain values, its long texts in one piece. Incomplete texts are left out."""
    attributes = span.attributes()
    found: dict[str, dict[int, str]] = {}
    for event in span.events:
        values = dict(event.attributes)
        key, number = to_plain(values.get(fields.TEXT_KEY)), values.get(fields.TEXT_NUMBER)
        if type(key) is str and type(number) is int:
            pieces = [to_plain(values.get(f"{fields.TEXT_PIECE}{at}")) for at in range(fields.MAX_EVENT_PIECES)]
            found.setdefault(key, {})[number] = "".join([piece for piece in pieces if type(piece) is str])
    for key, texts in found.items():
        if key not in attributes and all(number in texts for number in range(len(texts))):
            attributes[key] = "".join([texts[number] for number in range(len(texts))])
    return attributes


def decode_text(attributes: Mapping[str, Value], key: str) -> bytes | None:
    """Return a text, or None if there is none. Raises AttributeDecodeError.

    For ``attributes`` see ``read_attributes``.
    """
    value, size = attributes.get(key), attributes.get(key + fields.SIZE)
    if value is None and size is None:
        return None
    if not isinstance(value, str | Raw):
        problem = "is missing" if value is None else "is not a string"
        raise AttributeDecodeError(f"attribute {key} {problem}")
    text = value.encode() if isinstance(value, str) else bytes(value)
    if size is not None and size != len(text):
        raise AttributeDecodeError(f"attribute {key} has {len(text)} of {size!r} bytes")
    return text


def _split(text: bytes, length: int) -> Iterator[bytes]:
    """Yield a text in pieces of at most so many bytes, none of which ends inside a character."""
    start = 0
    while start < len(text):
        end = min(start + length, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield text[start:end]
        start = end


# The JSON text of a member that has no canonical form.


def _encode_non_canonical(content: SpanContent, key: str, value: Any) -> None:
    encode_text(content, key + fields.NON_CANONICAL, value if type(value) is Raw else _json(value))


def _string_or_raw(text: bytes) -> Any:
    if text == b"null":
        return None
    if text.startswith(b'"'):
        try:
            return msgspec.json.decode(text, type=str)
        except PARSE_ERRORS:
            return Raw(text)  # a lone surrogate, which JSON can represent and UTF-8 cannot
    return Raw(text)


# Members that have an attribute of their own.


def encode_value(content: SpanContent, field: fields.Field, value: Any) -> None:
    """Append a member of the kinds LABEL, TEXT, INTEGER and PAYLOAD. UNSET appends nothing."""
    if value is UNSET:
        return
    if field.kind is _PAYLOAD:
        encode_text(content, field.key, value)
    elif field.kind is _INTEGER:
        number = _parse_int64(bytes(value))
        if number is None:
            _encode_non_canonical(content, field.key, value)
        else:
            content.pairs.append((field.key, number))
    elif type(value) is str and 0 < len(value) <= fields.MAX_ATTRIBUTE_BYTES // 4:
        content.pairs.append((field.key, value))
    else:
        _encode_non_canonical(content, field.key, value)


def decode_value(attributes: Mapping[str, Value], field: fields.Field) -> Any:
    """Return the member as the document classes hold it, or UNSET if the document does not have it."""
    if field.kind is _PAYLOAD:
        text = decode_text(attributes, field.key)
        return UNSET if text is None else Raw(text)
    value = attributes.get(field.key)
    is_integer = field.kind is _INTEGER
    if is_integer and type(value) is int:
        return Raw(b"%d" % value)
    if not is_integer and type(value) is str:
        return value
    text = decode_text(attributes, field.key + fields.NON_CANONICAL)
    if text is None:
        return UNSET
    return Raw(text) if is_integer else _string_or_raw(text)


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
    content: SpanContent, table: fields.Table, started: Any, completed: Any, fallback: int
) -> tuple[int, int]:
    """Return the span's start and end in nanoseconds, and append the times that these cannot carry.

    The end is always after the start, because Jaeger moves any other end. ``fallback`` is the start of a span whose
    document has neither time in a usable form.
    """
    start_ns = canonical_ns(started) if type(started) is str else None
    end_ns = canonical_ns(completed) if type(completed) is str else None
    if start_ns is not None and end_ns is not None and end_ns > start_ns:
        return start_ns, end_ns
    if start_ns is None:
        encode_time(content, table.start, started)
        start_ns = time_ns(started)
    if start_ns is None:
        start_ns = time_ns(completed)
    if start_ns is None:
        start_ns = fallback
    return start_ns, _encode_end(content, table.end, completed, start_ns)


def _encode_end(content: SpanContent, field: fields.Field, completed: Any, start: int) -> int:
    """Return the end of a span in nanoseconds, and append the time if it is another one."""
    end = time_ns(completed)
    if end is None or end <= start:
        encode_time(content, field, completed)
        return start + 1
    if canonical_ns(completed) is None:
        encode_time(content, field, completed)
    return end


def encode_time(content: SpanContent, field: fields.Field, value: Any) -> None:
    """Append a time that the span's own times do not carry."""
    if value is UNSET:
        content.pairs.append((field.key + fields.NON_CANONICAL, fields.ABSENT))
    else:
        _encode_non_canonical(content, field.key, value)


def encode_run_times(
    content: SpanContent, started: Any, completed: Any, position: int, *, has_end: bool
) -> tuple[int, int]:
    """Return start and end of a run or revision span, and append the times that these cannot carry.

    The span starts at the run's position. Without ``has_end`` it has no length, as a span of an unfinished run.
    """
    if type(started) is not str or canonical_ns(started) != position:
        encode_time(content, fields.RUN_TABLE.start, started)
    if not has_end:
        if completed is not UNSET:
            _encode_non_canonical(content, fields.RUN_TABLE.end.key, completed)
        return position, position + 1
    return position, _encode_end(content, fields.RUN_TABLE.end, completed, position)


def decode_time(attributes: Mapping[str, Value], field: fields.Field, ns: int | None) -> Any:
    """Return the time as the document has it: that of the attribute if there is one, else the span's own.

    ``ns`` is None for a span that has no end of its own.
    """
    text = decode_text(attributes, field.key + fields.NON_CANONICAL)
    if text is not None:
        return UNSET if text == fields.ABSENT.encode() else _string_or_raw(text)
    if ns is None:
        return UNSET
    canonical = canonical_text(ns)
    if canonical is None:
        raise AttributeDecodeError(f"the span's {field.kind.name.lower()} was changed")
    return canonical


# All members of a span.


class _Never:
    """A type that no attribute value has."""


def _canonical_forms(table: fields.Table) -> dict[str, tuple[str, type, fields.FieldKind]]:
    """Return member, value type and kind by attribute key.

    The keys that mark a member as non-canonical or split have the type ``_Never``, so that they fail the type check.
    """
    forms: dict[str, tuple[str, type, fields.FieldKind]] = {
        field.key: (field.member, int if field.kind is _INTEGER else str, field.kind)
        for field in (*table.labels, *table.values)
    }
    for field in table.fields:
        for suffix in (fields.NON_CANONICAL, fields.SIZE, fields.NON_CANONICAL + fields.SIZE):
            forms[field.key + suffix] = "", _Never, field.kind
    return forms


_CANONICAL_FORMS = {
    table: _canonical_forms(table) for table in (fields.RUN_TABLE, fields.STEP_TABLE, fields.SUMMARY_TABLE)
}


def decode_members(
    attributes: Mapping[str, Value], table: fields.Table, span: Span, *, has_end: bool = True
) -> dict[str, Any]:
    """Return the members of a run or step span by their names in the document classes. Raises AttributeDecodeError.

    For ``attributes`` see ``read_attributes``, for ``has_end`` see ``encode_run_times``.
    """
    start, end = canonical_text(span.start), canonical_text(span.end) if has_end else ""
    if start is None or end is None:
        return _decode_field_by_field(attributes, table, span, has_end)
    values: dict[str, Any] = {table.start.member: start}
    if end:
        values[table.end.member] = end
    get_form = _CANONICAL_FORMS[table].get
    for key, value in attributes.items():
        form = get_form(key)
        if form is None:
            continue
        member, expected, kind = form
        if type(value) is not expected:
            return _decode_field_by_field(attributes, table, span, has_end)
        if kind is _PAYLOAD:
            values[member] = Raw(value.encode())  # type: ignore[union-attr]
        elif kind is _INTEGER:
            values[member] = Raw(str(value).encode())
        else:
            values[member] = value
    return values


def _decode_field_by_field(
    attributes: Mapping[str, Value], table: fields.Table, span: Span, has_end: bool
) -> dict[str, Any]:
    """Do the work of ``decode_members`` for spans with a member that is non-canonical, long or absent."""
    values: dict[str, Any] = {}
    try:
        for field in (*table.labels, *table.values):
            value = decode_value(attributes, field)
            if value is not UNSET:
                values[field.member] = value
        for field, ns in ((table.start, span.start), (table.end, span.end if has_end else None)):
            value = decode_time(attributes, field, ns)
            if value is not UNSET:
                values[field.member] = value
    except AttributeDecodeError as error:
        raise AttributeDecodeError(f"span {span.span_id.hex()}: {error}") from None
    return values


def decode_step(span: Span, attributes: Mapping[str, Value]) -> Step:
    """Return the step of a step span. Raises AttributeDecodeError. For ``attributes`` see ``read_attributes``."""
    values = decode_members(attributes, fields.STEP_TABLE, span)
    if "id" not in values:
        raise AttributeDecodeError(f"span {span.span_id.hex()}: the step's id is missing")
    return with_extra_step(Step(**values), decode_extra(attributes, fields.STEP_EXTRA))


def parse_open_step(text: str) -> Step:
    """Return the step of a canonical text. Raises DocumentError or ValueError."""
    envelope, _, _ = parse_document('{"id":"_","steps":[' + text + "]}")
    if type(envelope.steps) is not list or len(envelope.steps) != 1:
        raise ValueError(text)
    return envelope.steps[0]


def encode_extra(content: SpanContent, key: str, extra: bytes) -> None:
    """Append the unknown members as one JSON object; nothing if there are none."""
    if extra:
        encode_text(content, key, b"{" + extra + b"}")


def decode_extra(attributes: Mapping[str, Value], key: str) -> bytes:
    """Return the text of the unknown members without the object's braces; empty if there are none."""
    return (decode_text(attributes, key) or b"")[1:-1]


_MAX_TEMPLATES = 4096
"""Entries per cache. With names of ``MAX_NAME_LENGTH`` characters that is a few megabytes."""
MAX_NAME_LENGTH = 500
"""Characters of a label in span names and ``cicd.*`` attributes: at most 2000 bytes."""
_NO_ATTRIBUTES = Attributes([])


@dataclasses.dataclass(slots=True, eq=False)
class SpanTemplate:
    """The parts of a span that its labels determine."""

    name: str
    kind: int
    shared: Attributes
    texts: list[tuple[str, bytes]]
    """Labels that are too long for an attribute."""
    error_type: str | None
    """The default ``error.type`` if the status is an error, else None."""
    is_agent: bool = False
    is_loop: bool = False
    is_sub_workflow: bool = False
    finished: bool = False
    """Whether a step has ended."""
    pipeline: str = ""
    """The workflow of a run, as span names show it."""
    identity: Attributes = _NO_ATTRIBUTES
    """The labels of a run that are on all of its spans."""
    salt: int = 0
    """64 bits of the digest of ``identity``."""
    wire: bytes | None = None
    """The OTLP bytes of name, kind and ``shared``, cached by a writer."""


class _TemplateCache(dict[tuple[Any, ...], SpanTemplate]):
    """Templates by the values of their labels, created on first use."""

    def __init__(self, create: Callable[..., SpanTemplate]) -> None:
        super().__init__()
        self._create = create

    def __missing__(self, key: tuple[Any, ...]) -> SpanTemplate:
        template = self._create(*key)
        if sum([len(value) for value in key if type(value) is str]) > MAX_NAME_LENGTH:
            return template  # not cached, since its size has no bound
        if len(self) >= _MAX_TEMPLATES:
            self.clear()
        self[key] = template
        return template


def _create_step_template(*values: Any) -> SpanTemplate:
    content = SpanContent()
    pairs = content.pairs
    pairs.append((fields.ROLE, fields.ROLE_STEP))
    members: dict[str, Any] = {}
    for field, value in zip(fields.STEP_TABLE.labels, values, strict=True):
        encode_value(content, field, value)
        members[field.member] = value
    labels = (members["name"], members["id"], "step")
    name = next(text[:MAX_NAME_LENGTH] for text in labels if type(text) is str and text)
    kind = members["type"] if type(members["type"]) is str else None
    status = members["status"] if type(members["status"]) is str else ""
    pairs.append(("cicd.pipeline.task.name", name))
    if status in STEP_RESULTS:
        pairs.append(("cicd.pipeline.task.run.result", STEP_RESULTS[status]))
    if kind == "agent":
        pairs += [("gen_ai.operation.name", "invoke_agent"), ("gen_ai.agent.name", name)]
        name = f"invoke_agent {name}"
    if status == "skipped":
        name = f"{name} (skipped)"
    return SpanTemplate(
        name,
        INTERNAL,
        Attributes(pairs),
        content.texts,
        STEP_ERRORS.get(status),
        is_agent=kind == "agent",
        is_loop=kind == LOOP,
        is_sub_workflow=kind == "sub-workflow",
        finished=status in TERMINAL_STEP_STATUSES,
    )


def _create_run_template(is_root: bool, *values: Any) -> SpanTemplate:
    content = SpanContent()
    content.pairs += (
        [(fields.ROLE, fields.ROLE_RUN), (fields.REVISION, fields.ROOT_REVISION)]
        if is_root
        else [(fields.ROLE, fields.ROLE_REVISION)]
    )
    members: dict[str, Any] = {}
    identity: Pairs = []
    for field, value in zip(fields.RUN_TABLE.labels, values, strict=True):
        members[field.member] = value
        if field.key == fields.WORKFLOW_ID and type(value) is str and 0 < len(value) <= MAX_NAME_LENGTH:
            identity.append((field.key, value))
        else:
            encode_value(content, field, value)
    workflow = members["workflow_id"]
    status = members["status"] if type(members["status"]) is str else ""
    pipeline = workflow[:MAX_NAME_LENGTH] if type(workflow) is str and workflow else "workflow"
    content.pairs.append((PIPELINE_NAME, pipeline))
    if status in RUN_RESULTS:
        content.pairs.append(("cicd.pipeline.result", RUN_RESULTS[status]))
    elif status in RUN_STATES:
        content.pairs.append(("cicd.pipeline.run.state", RUN_STATES[status]))
    return SpanTemplate(
        f"run {pipeline}" if is_root else f"run {pipeline} (revision)",
        SERVER if is_root else INTERNAL,
        Attributes(content.pairs),
        content.texts,
        RUN_ERRORS.get(status),
        pipeline=pipeline,
        identity=Attributes(identity),
        salt=hash_parts(*[part.encode() for key, value in identity for part in (key, str(value))]),
    )


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
