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

from msgspec import UNSET, Raw, UnsetType

from runspan.codec.attributes import (
    AttributeDecodeError,
    decode_members,
    decode_step,
    decode_text,
    parse_open_step,
    strip_braces,
)
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    NON_CANONICAL,
    OPEN_STEP_MARK,
    OPEN_STEPS,
    REVISION,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    RUN_EXTRA,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    TENANT,
)
from runspan.errors import DocumentError, NotFound, TraceIncomplete
from runspan.model.document import (
    SUMMARY_MEMBERS,
    Envelope,
    Step,
    run_text,
    sort_time,
    str_or_none,
    summary_text,
    with_extra_run,
)
from runspan.model.ids import run_ids
from runspan.model.json_scanner import elements, is_json_value
from runspan.model.parse import parse_document
from runspan.model.run import Run
from runspan.model.span import Span, Value

_ID_DIGITS = len(OPEN_STEP_MARK)
_NO_ID = b""
_MANIFEST = re.compile(r"(?:[0-9a-f]{16}|\.{16})*")
_MAX_CHOICES = 64
"""How many combinations of spans that share ids are tried before the head counts as damaged."""
_MAX_REBUILDS = 256
_MAX_BYTES = 128 << 20
_MIN_REBUILDS = 4
"""How many documents one reading rebuilds, and how many bytes of them, if more than a few: a trace of forged heads must
not take minutes."""
_MAX_NOTES = 20
"""How many revisions are told that could not be proved; one more line counts the rest."""


@dataclass(frozen=True, slots=True)
class VerifiedRun:
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
    decoded = verify_run(spans)
    if decoded.incomplete:
        raise TraceIncomplete(
            "the newest revision of the run is incomplete",
            where=f"run {decoded.run.id}",
            missing=decoded.incomplete,
            fallback=decoded.run,
            hint="read the trace again shortly; if that stays so, spans were lost or cut on the way",
        )
    return decoded.run


def verify_run(spans: Iterable[Span]) -> VerifiedRun:
    """The newest revision that the spans prove. Of equals, the later in the given order wins.

    Raises TraceIncomplete when none is proved, NotFound when no span of them is runspan's.
    """
    heads: list[tuple[int, int, Span, dict[str, Value]]] = []
    steps = _StepSpans()
    for order, span in enumerate(spans):
        attributes = span.attributes()
        role = attributes.get(ROLE)
        if role == ROLE_STEP:
            steps.spans.setdefault(span.span_id, []).append((span, attributes))
        elif role in (ROLE_RUN, ROLE_REVISION):
            revision = attributes.get(REVISION)
            heads.append((revision if type(revision) is int else -1, order, span, attributes))
    if not heads and not steps.spans:
        raise NotFound("no span of the trace is runspan's", expected="a span with the attribute runspan.role")
    missing = {} if heads else {f"the run span; {len(steps.spans)} step spans are there": None}
    for revision, _, span, attributes in sorted(heads, key=_rank, reverse=True):
        try:
            run, step_ids = _RevisionSpan(span, attributes, steps).document()
        except AttributeDecodeError as error:
            missing[f"revision {revision}: {error}"] = None
            continue
        tenant = attributes.get(TENANT, "")
        return VerifiedRun(run, tenant if type(tenant) is str else "", revision, step_ids, _notes(missing))
    raise TraceIncomplete(
        "no revision of the run can be proved",
        missing=_notes(missing),
        hint="read the trace again shortly; if that stays so, spans were lost or cut on the way",
    )


def _rank(head: tuple[int, int, Span, dict[str, Value]]) -> tuple[int, int]:
    return head[:2]


def _notes(missing: Mapping[str, None]) -> tuple[str, ...]:
    notes = tuple(missing)
    if len(notes) <= _MAX_NOTES:
        return notes
    return *notes[:_MAX_NOTES], f"and {len(notes) - _MAX_NOTES} older revisions"


@dataclass(frozen=True, slots=True)
class RunSummary:
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


def read_summary(span: Span) -> RunSummary | None:
    """The heading of a run or snapshot span; None for any other span, TraceIncomplete when a piece is missing."""
    attributes = span.attributes()
    revision = attributes.get(REVISION)
    run_id, tenant = attributes.get(RUN_ID), attributes.get(TENANT, "")
    if attributes.get(ROLE) not in (ROLE_RUN, ROLE_REVISION):
        return None
    try:
        if type(revision) is not int or type(run_id) is not str or type(tenant) is not str:
            raise AttributeDecodeError(f"span {span.span_id.hex()}: attribute {REVISION} or {RUN_ID} is missing")
        envelope = Envelope(id=run_id, **decode_members(attributes, RUN_TABLE, span))
        for name in SUMMARY_MEMBERS:
            value = getattr(envelope, name)
            if type(value) is Raw and not is_json_value(bytes(value)):  # no digest proves a list's item
                raise AttributeDecodeError(f"span {span.span_id.hex()}: {name} is no JSON value")
    except AttributeDecodeError as error:
        raise TraceIncomplete("the head of a run is cut", where=f"run {run_id!r}", missing=(str(error),)) from None
    return RunSummary(
        run_id,
        tenant,
        revision,
        str_or_none(envelope.workflow_id),
        str_or_none(envelope.status),
        sort_time(envelope),
        summary_text(envelope),
    )


class _StepSpans:
    """The step spans of one reading, and what it may still rebuild.

    spans: with their attributes, by span id, in the given order.
    """

    def __init__(self) -> None:
        self.spans: dict[bytes, list[tuple[Span, dict[str, Value]]]] = {}
        self._read: dict[bytes, list[Step]] = {}
        self._texts = self._bytes = 0

    def candidates(self, span_id: bytes) -> list[Step]:
        """The steps that spans under one id may tell; Missing when none can be read."""
        steps = self._read.get(span_id)
        if steps is None:
            steps = self._read[span_id] = _decode_candidates(self.spans[span_id])
        return steps

    def rebuild(self, envelope: Envelope) -> bytes:
        """The document's text; Missing when there were too many before."""
        if self._texts >= _MAX_REBUILDS or (self._bytes >= _MAX_BYTES and self._texts >= _MIN_REBUILDS):
            raise AttributeDecodeError("not looked at: too many revisions above it could not be proved")
        text = run_text(envelope)
        self._texts += 1
        self._bytes += len(text)
        return text


class _RevisionSpan:
    """One head with the step spans that may belong to it."""

    def __init__(self, span: Span, attributes: Mapping[str, Value], steps: _StepSpans) -> None:
        self.span = span
        self.attributes = attributes
        self.steps = steps

    def document(self) -> tuple[Run, list[bytes]]:
        """The document and its step spans' ids; Missing when the proof fails."""
        run_id = self.attributes.get(RUN_ID)
        tenant = self.attributes.get(TENANT, "")
        if type(run_id) is not str or type(tenant) is not str:
            raise AttributeDecodeError(f"attribute {RUN_ID} is missing")
        if run_ids(run_id, tenant).trace_id != self.span.trace_id:
            raise AttributeDecodeError(f"the trace id does not follow from run id {run_id!r}")
        names = self._manifest()
        step_ids = [name for name in names or () if name]
        values = decode_members(self.attributes, RUN_TABLE, self.span)
        extra = strip_braces(decode_text(self.attributes, RUN_EXTRA))
        for steps in self._choices(names):
            envelope = with_extra_run(Envelope(id=run_id, steps=steps, **values), extra)
            text = self.steps.rebuild(envelope)
            if sha256(text).hexdigest() == self.attributes.get(DIGEST):
                break
        else:
            raise AttributeDecodeError(
                "the document rebuilt does not have the digest that the head tells: something was changed"
            )
        try:
            return Run(*parse_document(text)), step_ids
        except DocumentError as error:
            raise AttributeDecodeError(f"the document is not one that encode carries: {error}") from None

    def _manifest(self) -> list[bytes] | None:
        """The span ids of the steps, an empty one for a step without; None when the document has no list of steps."""
        count = self.attributes.get(STEP_COUNT)
        if count is None:
            return None
        manifest = (decode_text(self.attributes, MANIFEST) or b"").decode()
        if type(count) is not int or len(manifest) != count * _ID_DIGITS:
            raise AttributeDecodeError(f"the manifest names {len(manifest) // _ID_DIGITS} of {count!r} steps")
        if not _MANIFEST.fullmatch(manifest):
            raise AttributeDecodeError("the manifest names a step by something else than a span id")
        starts = range(0, len(manifest), _ID_DIGITS)
        names = [bytes.fromhex(manifest[start : start + _ID_DIGITS].strip(".")) for start in starts]
        finished = [name for name in names if name]
        if len(set(finished)) != len(finished):
            raise AttributeDecodeError("the manifest names a span twice")
        return names

    def _choices(self, names: list[bytes] | None) -> Iterator[list[Step] | UnsetType | None]:
        """The lists of steps that the spans allow: one, unless two spans of different content share an id."""
        if names is None:
            yield None if self.attributes.get(MANIFEST + NON_CANONICAL) == "null" else UNSET
            return
        open_steps = iter(self._open_steps(names.count(_NO_ID)))
        absent = [name.hex() for name in names if name and name not in self.steps.spans]
        if absent:
            shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            raise AttributeDecodeError(f"{len(absent)} of {len(names) - names.count(_NO_ID)} step spans: {shown}")
        candidates = [self.steps.candidates(name) if name else [next(open_steps)] for name in names]
        for choice in islice(product(*candidates), _MAX_CHOICES):
            yield list(choice)

    def _open_steps(self, count: int) -> list[Step]:
        if not count:
            return []
        text = (decode_text(self.attributes, OPEN_STEPS) or b"[]").decode()
        try:
            found = [parse_open_step(element.value_text) for element in elements(text, 0)]
        except (ValueError, DocumentError):
            raise AttributeDecodeError(f"attribute {OPEN_STEPS} is cut") from None
        if len(found) != count:
            raise AttributeDecodeError(f"{len(found)} of {count} open steps")
        return found


def _decode_candidates(found: list[tuple[Span, dict[str, Value]]]) -> list[Step]:
    """The steps of spans with one id: of the latest span, of the first, then of the others; Missing when there is none.

    In most places the first is the stored one, which must not be lost among many others.
    """
    if len(found) == 1:
        return [decode_step(*found[0])]
    steps: list[Step] = []
    seen: list[Span] = []
    failure = AttributeDecodeError("")
    for span, attributes in (found[-1], found[0], *found[-2:0:-1]):
        if len(seen) == _MAX_CHOICES:
            break
        if span in seen:
            continue
        seen.append(span)
        try:
            steps.append(decode_step(span, attributes))
        except AttributeDecodeError as error:
            failure = error
    if not steps:
        raise failure
    return steps
