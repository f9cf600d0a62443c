"""Spans to the run document: the pure half that reads, and proves what it read; no I/O, no clock.

It takes spans of one trace in any order, duplicated, in fragments and mixed with foreign ones. Heads are tried from the
highest revision down; one counts only when every step it names is there and the document rebuilt has the digest that
the head carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, product
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from runspan.carry import Missing, take_text, take_time, take_value
from runspan.document import (
    Envelope,
    Step,
    plain_text,
    run_text,
    sort_time,
    summary_text,
    with_extra_run,
    with_extra_step,
)
from runspan.errors import DocumentError, NotFound, TraceIncomplete
from runspan.fields import (
    DIGEST,
    MANIFEST,
    ODD,
    OPEN,
    OPEN_STEPS,
    PARTS,
    REVISION,
    ROLE,
    ROLE_RUN,
    ROLE_SNAPSHOT,
    ROLE_STEP,
    RUN_EXTRA,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    STEP_EXTRA,
    STEP_TABLE,
    TENANT,
    Kind,
    Table,
)
from runspan.ids import run_ids
from runspan.parse import parse_document
from runspan.run import Run
from runspan.scan import elements
from runspan.span import Span, Value
from runspan.times import canonical_text

_ID_DIGITS = len(OPEN)
_NO_ID = b""
_MANIFEST = re.compile(r"(?:[0-9a-f]{16}|\.{16})*")
_MAX_CHOICES = 64
"""How many combinations of spans that share ids are tried before the head counts as damaged."""


Steps = dict[bytes, list[tuple[Span, dict[str, Value]]]]
"""Step spans with their attributes, by span id, in the given order."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A run as its spans prove it.

    revision: the head's. step_ids: the spans of the finished steps, in the document's order.
    incomplete: empty, or what is missing of newer revisions, one line each.
    """

    run: Run
    tenant: str
    revision: int
    step_ids: list[bytes]
    incomplete: tuple[str, ...] = ()


def decode(spans: Iterable[Span]) -> Run:
    """The newest revision of the run. TraceIncomplete names what is missing of it, NotFound says it is no run."""
    decoded = read_run(spans)
    if decoded.incomplete:
        raise TraceIncomplete(
            "the newest revision of the run is incomplete",
            where=f"run {decoded.run.id}",
            missing=decoded.incomplete,
            fallback=decoded.run,
            hint="read the trace again shortly; if that stays so, spans were lost or cut on the way",
        )
    return decoded.run


def read_run(spans: Iterable[Span]) -> Decoded:
    """The newest revision that the spans prove. Of equals, the later in the given order wins.

    Raises TraceIncomplete when none is proved, NotFound when no span of them is runspan's.
    """
    heads: list[tuple[int, int, Span, dict[str, Value]]] = []
    steps: Steps = {}
    for order, span in enumerate(spans):
        attributes = span.attributes()
        role = attributes.get(ROLE)
        if role == ROLE_STEP:
            steps.setdefault(span.span_id, []).append((span, attributes))
        elif role in (ROLE_RUN, ROLE_SNAPSHOT):
            revision = attributes.get(REVISION)
            heads.append((revision if type(revision) is int else -1, order, span, attributes))
    if not heads and not steps:
        raise NotFound("no span of the trace is runspan's", expected="a span with the attribute runspan.role")
    missing: list[str] = [] if heads else [f"the run span; {len(steps)} step spans are there"]
    for revision, _, span, attributes in sorted(heads, key=lambda head: head[:2], reverse=True):
        try:
            run, step_ids = _Head(span, attributes, steps).document()
        except Missing as error:
            note = f"revision {revision}: {error}"
            if note not in missing:
                missing.append(note)
            continue
        tenant = attributes.get(TENANT, "")
        return Decoded(run, tenant if type(tenant) is str else "", revision, step_ids, tuple(missing))
    raise TraceIncomplete(
        "no revision of the run can be proved",
        missing=tuple(missing),
        hint="read the trace again shortly; if that stays so, spans were lost or cut on the way",
    )


@dataclass(frozen=True, slots=True)
class Heading:
    """What a head span tells without the steps: enough for a list item, though without the proof of the digest.

    time: the sort time of ``contracts.RunQuery``. summary: the list item's JSON text.
    """

    run_id: str
    tenant: str
    revision: int
    workflow_id: str | None
    status: str | None
    time: int
    summary: bytes


def read_heading(span: Span) -> Heading | None:
    """The heading of a run or snapshot span; None for any other span, TraceIncomplete when a piece is missing."""
    attributes = span.attributes()
    revision = attributes.get(REVISION)
    run_id, tenant = attributes.get(RUN_ID), attributes.get(TENANT, "")
    if attributes.get(ROLE) not in (ROLE_RUN, ROLE_SNAPSHOT):
        return None
    try:
        if type(revision) is not int or type(run_id) is not str or type(tenant) is not str:
            raise Missing(f"span {span.span_id.hex()}: attribute {REVISION} or {RUN_ID} is missing")
        envelope = Envelope(id=run_id, **_members(attributes, RUN_TABLE, span))
    except Missing as error:
        raise TraceIncomplete("the head of a run is cut", where=f"run {run_id!r}", missing=(str(error),)) from None
    return Heading(
        run_id,
        tenant,
        revision,
        plain_text(envelope.workflow_id),
        plain_text(envelope.status),
        sort_time(envelope),
        summary_text(envelope),
    )


class _Head:
    """One head with the step spans that may belong to it."""

    def __init__(self, span: Span, attributes: Mapping[str, Value], steps: Steps) -> None:
        self.span = span
        self.attributes = attributes
        self.steps = steps

    def document(self) -> tuple[Run, list[bytes]]:
        """The document and its step spans' ids; Missing when the proof fails."""
        run_id = self.attributes.get(RUN_ID)
        tenant = self.attributes.get(TENANT, "")
        if type(run_id) is not str or type(tenant) is not str:
            raise Missing(f"attribute {RUN_ID} is missing")
        if run_ids(run_id, tenant).trace_id != self.span.trace_id:
            raise Missing(f"the trace id does not follow from run id {run_id!r}")
        names = self._manifest()
        step_ids = [name for name in names or () if name]
        values = _members(self.attributes, RUN_TABLE, self.span)
        extra = _inner(take_text(self.attributes, RUN_EXTRA))
        for steps in self._choices(names):
            envelope = with_extra_run(Envelope(id=run_id, steps=steps, **values), extra)
            text = run_text(envelope)
            if sha256(text).hexdigest() == self.attributes.get(DIGEST):
                break
        else:
            raise Missing("the document rebuilt does not have the digest that the head tells: something was changed")
        try:
            return Run(*parse_document(text)), step_ids
        except DocumentError as error:
            raise Missing(f"the document is not one that encode carries: {error}") from None

    def _manifest(self) -> list[bytes] | None:
        """The span ids of the steps, an empty one for a step without; None when the document has no list of steps."""
        count = self.attributes.get(STEP_COUNT)
        if count is None:
            return None
        manifest = (take_text(self.attributes, MANIFEST) or b"").decode()
        if type(count) is not int or len(manifest) != count * _ID_DIGITS:
            raise Missing(f"the manifest names {len(manifest) // _ID_DIGITS} of {count!r} steps")
        if not _MANIFEST.fullmatch(manifest):
            raise Missing("the manifest names a step by something else than a span id")
        starts = range(0, len(manifest), _ID_DIGITS)
        names = [bytes.fromhex(manifest[start : start + _ID_DIGITS].strip(".")) for start in starts]
        finished = [name for name in names if name]
        if len(set(finished)) != len(finished):
            raise Missing("the manifest names a span twice")
        return names

    def _choices(self, names: list[bytes] | None) -> Iterator[list[Step] | UnsetType | None]:
        """The lists of steps that the spans allow: one, unless two spans of different content share an id."""
        if names is None:
            yield None if self.attributes.get(MANIFEST + ODD) == "null" else UNSET
            return
        open_steps = iter(self._open_steps(names.count(_NO_ID)))
        absent = [name.hex() for name in names if name and name not in self.steps]
        if absent:
            shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            raise Missing(f"{len(absent)} of {len(names) - names.count(_NO_ID)} step spans: {shown}")
        candidates = [self._readable(self.steps[name]) if name else [next(open_steps)] for name in names]
        for choice in islice(product(*candidates), _MAX_CHOICES):
            yield list(choice)

    def _open_steps(self, count: int) -> list[Step]:
        if not count:
            return []
        text = (take_text(self.attributes, OPEN_STEPS) or b"[]").decode()
        try:
            found = [parse_step(element.value_text) for element in elements(text, 0)]
        except ValueError:
            raise Missing(f"attribute {OPEN_STEPS} is cut") from None
        if len(found) != count:
            raise Missing(f"{len(found)} of {count} open steps")
        return found

    def _readable(self, found: list[tuple[Span, dict[str, Value]]]) -> list[Step]:
        """The steps that spans under one id tell, the latest first; Missing when none can be read."""
        if len(found) == 1:
            return [read_step(*found[0])]
        steps: list[Step] = []
        seen: list[Span] = []
        failure = Missing("")
        for span, attributes in reversed(found):
            if len(seen) == _MAX_CHOICES:
                break
            if span in seen:
                continue
            seen.append(span)
            try:
                steps.append(read_step(span, attributes))
            except Missing as error:
                failure = error
        if not steps:
            raise failure
        return steps


def parse_step(text: str) -> Step:
    """A step from its canonical text."""
    envelope, _, _ = parse_document('{"id":"_","steps":[' + text + "]}")
    if type(envelope.steps) is not list or len(envelope.steps) != 1:
        raise ValueError(text)
    return envelope.steps[0]


def read_step(span: Span, attributes: Mapping[str, Value] | None = None) -> Step:
    """The step that a step span carries; Missing when a piece is not there."""
    attributes = span.attributes() if attributes is None else attributes
    values = _members(attributes, STEP_TABLE, span)
    if "id" not in values:
        raise Missing(f"span {span.span_id.hex()}: the step's id is missing")
    return with_extra_step(Step(**values), _inner(take_text(attributes, STEP_EXTRA)))


class _Unusual:
    """The type of no value."""


def _rows(table: Table) -> dict[str, tuple[str, type, Kind]]:
    """By attribute name: member, type and kind of the usual form. A name that says that some member is not in its usual
    form has a type that no value has."""
    usual: dict[str, tuple[str, type, Kind]] = {
        field.key: (field.member, int if field.kind is Kind.INTEGER else str, field.kind)
        for field in (*table.labels, *table.values)
    }
    for field in table.fields:
        for ending in (ODD, PARTS):
            usual[field.key + ending] = "", _Unusual, field.kind
    return usual


_ROWS = {table: _rows(table) for table in (RUN_TABLE, STEP_TABLE)}
_PAYLOAD, _INTEGER = Kind.PAYLOAD, Kind.INTEGER


def _members(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """The members by their names in the document classes."""
    start, end = canonical_text(span.start), canonical_text(span.end)
    if start is None or end is None:
        return _odd_members(attributes, table, span)
    values: dict[str, Any] = {table.start.member: start, table.end.member: end}
    row_of = _ROWS[table].get
    for key, value in attributes.items():
        row = row_of(key)
        if row is None:
            continue
        member, usual, kind = row
        if type(value) is not usual:
            return _odd_members(attributes, table, span)
        if kind is _PAYLOAD:
            values[member] = Raw(value.encode())  # type: ignore[union-attr]
        elif kind is _INTEGER:
            values[member] = Raw(str(value).encode())
        else:
            values[member] = value
    return values


def _odd_members(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """The same for spans on which some member is odd, long or absent."""
    values: dict[str, Any] = {}
    try:
        for field in (*table.labels, *table.values):
            value = take_value(attributes, field)
            if value is not UNSET:
                values[field.member] = value
        for field, ns in ((table.start, span.start), (table.end, span.end)):
            value = take_time(attributes, field, ns)
            if value is not UNSET:
                values[field.member] = value
    except Missing as error:
        raise Missing(f"span {span.span_id.hex()}: {error}") from None
    return values


def _inner(extra: bytes | None) -> bytes:
    return b"" if extra is None else extra[1:-1]
