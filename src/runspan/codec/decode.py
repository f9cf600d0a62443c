"""The decoder, which rebuilds and verifies the run document of a trace's spans; no I/O, no clock.

The spans of a trace may come in any order, duplicated, incomplete and mixed with foreign spans. Revision spans are
tried from the highest revision down. A revision is verified if every step span of its manifest is present and the
rebuilt document has the digest that the revision span carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, product
from operator import itemgetter

from msgspec import UNSET, Raw, UnsetType

from runspan.codec.attributes import (
    AttributeDecodeError,
    decode_extra,
    decode_members,
    decode_step,
    decode_text,
    parse_open_step,
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
    Run,
    Step,
    parse_document,
    run_text,
    sort_time,
    str_or_none,
    summary_text,
    with_extra_run,
)
from runspan.model.json_scanner import elements, is_json_value
from runspan.model.span import Span, Value, run_ids

_ID_DIGITS = len(OPEN_STEP_MARK)
_NO_ID = b""
_MANIFEST = re.compile(r"(?:[0-9a-f]{16}|\.{16})*")
_MAX_COMBINATIONS = 64
"""Combinations of spans with the same ids that are tried before a revision is reported as damaged."""
_MAX_REBUILDS = 256
_MAX_BYTES = 128 << 20
_MIN_REBUILDS = 4
"""Bounds on the documents rebuilt for one trace and on their bytes, so that forged revisions cannot take minutes. The
first few documents are rebuilt whatever their size."""
_MAX_REPORTED = 20
"""Unverified revisions that are reported one by one; one more line counts the others."""
_RETRY_HINT = "read the trace again shortly; if it stays incomplete, spans were lost or truncated on the way"

_StepSpan = tuple[Span, dict[str, Value]]
"""A step span with its attributes."""


@dataclass(frozen=True, slots=True)
class VerifiedRun:
    """A run whose document was rebuilt from spans and verified."""

    run: Run
    tenant: str
    revision: int
    step_ids: list[bytes]
    """The span ids of the finished steps, in the order of the document."""
    incomplete: tuple[str, ...] = ()
    """What is missing of newer revisions, one line each."""


def decode(spans: Iterable[Span]) -> Run:
    """Return the newest revision of the run.

    Raises TraceIncomplete if that revision cannot be verified and NotFound if there is no span of runspan.
    """
    verified = verify_run(spans)
    if verified.incomplete:
        raise TraceIncomplete(
            "the newest revision of the run is incomplete",
            where=f"run {verified.run.id}",
            missing=verified.incomplete,
            fallback=verified.run,
            hint=_RETRY_HINT,
        )
    return verified.run


def verify_run(spans: Iterable[Span]) -> VerifiedRun:
    """Return the newest revision that can be verified. Of equal revisions, the later span in the given order wins.

    Raises TraceIncomplete if no revision can be verified and NotFound if there is no span of runspan.
    """
    revisions: list[tuple[int, int, Span, dict[str, Value]]] = []
    steps = _StepSpans()
    for order, span in enumerate(spans):
        attributes = span.attributes()
        role = attributes.get(ROLE)
        if role == ROLE_STEP:
            steps.spans.setdefault(span.span_id, []).append((span, attributes))
        elif role in (ROLE_RUN, ROLE_REVISION):
            revision = attributes.get(REVISION)
            revisions.append((revision if type(revision) is int else -1, order, span, attributes))
    if not revisions and not steps.spans:
        raise NotFound("the trace has no span of runspan", expected="a span with the attribute runspan.role")
    missing = {} if revisions else {f"the run span; the trace has {len(steps.spans)} step spans": None}
    for revision, _, span, attributes in sorted(revisions, key=itemgetter(0, 1), reverse=True):
        try:
            run, step_ids = _RevisionSpan(span, attributes, steps).verify()
        except AttributeDecodeError as error:
            missing[f"revision {revision}: {error}"] = None
            continue
        tenant = attributes.get(TENANT, "")
        return VerifiedRun(run, tenant if type(tenant) is str else "", revision, step_ids, _limited(missing))
    raise TraceIncomplete(
        "no revision of the run can be verified",
        missing=_limited(missing),
        hint=_RETRY_HINT,
    )


def _limited(missing: Mapping[str, None]) -> tuple[str, ...]:
    lines = tuple(missing)
    if len(lines) <= _MAX_REPORTED:
        return lines
    return *lines[:_MAX_REPORTED], f"and {len(lines) - _MAX_REPORTED} older revisions"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The list item of a revision span, read without the steps and so not verified by the digest."""

    run_id: str
    tenant: str
    revision: int
    workflow_id: str | None
    status: str | None
    time: int
    """The sort time, see ``contracts.RunQuery``."""
    summary: bytes
    """The JSON text of the list item."""


def read_summary(span: Span) -> RunSummary | None:
    """Return the summary of a revision span, or None for any other span. Raises TraceIncomplete."""
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
            if type(value) is Raw and not is_json_value(bytes(value)):  # no digest verifies a list item
                raise AttributeDecodeError(f"span {span.span_id.hex()}: {name} is not a JSON value")
    except AttributeDecodeError as error:
        raise TraceIncomplete("a revision span is damaged", where=f"run {run_id!r}", missing=(str(error),)) from None
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
    """The step spans of a trace by span id, and the bounds on rebuilding documents from them."""

    def __init__(self) -> None:
        self.spans: dict[bytes, list[_StepSpan]] = {}
        self._decoded: dict[bytes, list[Step]] = {}
        self._rebuilds = self._bytes = 0

    def candidates(self, span_id: bytes) -> list[Step]:
        """Return the steps of the spans with this id. Raises AttributeDecodeError if none can be decoded."""
        steps = self._decoded.get(span_id)
        if steps is None:
            steps = self._decoded[span_id] = _decode_candidates(self.spans[span_id])
        return steps

    def rebuild(self, envelope: Envelope) -> bytes:
        """Return the document's text. Raises AttributeDecodeError after too many documents."""
        if self._rebuilds >= _MAX_REBUILDS or (self._bytes >= _MAX_BYTES and self._rebuilds >= _MIN_REBUILDS):
            raise AttributeDecodeError("not tried: too many newer revisions could not be verified")
        text = run_text(envelope)
        self._rebuilds += 1
        self._bytes += len(text)
        return text


class _RevisionSpan:
    """A revision span and the step spans of its trace."""

    def __init__(self, span: Span, attributes: Mapping[str, Value], steps: _StepSpans) -> None:
        self.span = span
        self.attributes = attributes
        self.steps = steps

    def verify(self) -> tuple[Run, list[bytes]]:
        """Return the verified run and the ids of its step spans. Raises AttributeDecodeError."""
        run_id = self.attributes.get(RUN_ID)
        tenant = self.attributes.get(TENANT, "")
        if type(run_id) is not str or type(tenant) is not str:
            raise AttributeDecodeError(f"attribute {RUN_ID} is missing")
        if run_ids(run_id, tenant).trace_id != self.span.trace_id:
            raise AttributeDecodeError(f"the trace id does not follow from run id {run_id!r}")
        manifest = self._manifest()
        values = decode_members(self.attributes, RUN_TABLE, self.span)
        extra = decode_extra(self.attributes, RUN_EXTRA)
        for steps in self._step_lists(manifest):
            envelope = with_extra_run(Envelope(id=run_id, steps=steps, **values), extra)
            text = self.steps.rebuild(envelope)
            if sha256(text).hexdigest() == self.attributes.get(DIGEST):
                break
        else:
            raise AttributeDecodeError("the rebuilt document does not have the recorded digest: spans were changed")
        try:
            return Run(*parse_document(text)), [span_id for span_id in manifest or () if span_id]
        except DocumentError as error:
            raise AttributeDecodeError(f"the document is not one that encode writes: {error}") from None

    def _manifest(self) -> list[bytes] | None:
        """Return the span ids of the steps, empty for an open step, or None if the document has no list of steps."""
        count = self.attributes.get(STEP_COUNT)
        if count is None:
            return None
        manifest = (decode_text(self.attributes, MANIFEST) or b"").decode()
        if type(count) is not int or len(manifest) != count * _ID_DIGITS:
            raise AttributeDecodeError(f"the manifest has {len(manifest) // _ID_DIGITS} of {count!r} steps")
        if not _MANIFEST.fullmatch(manifest):
            raise AttributeDecodeError("the manifest has an entry that is not a span id")
        starts = range(0, len(manifest), _ID_DIGITS)
        span_ids = [bytes.fromhex(manifest[start : start + _ID_DIGITS].strip(".")) for start in starts]
        finished = [span_id for span_id in span_ids if span_id]
        if len(set(finished)) != len(finished):
            raise AttributeDecodeError("the manifest has a span id twice")
        return span_ids

    def _step_lists(self, manifest: list[bytes] | None) -> Iterator[list[Step] | UnsetType | None]:
        """Yield the possible lists of steps: one, unless spans with different content have the same id."""
        if manifest is None:
            yield None if self.attributes.get(MANIFEST + NON_CANONICAL) == "null" else UNSET
            return
        open_count = manifest.count(_NO_ID)
        open_steps = iter(self._open_steps(open_count))
        absent = [span_id.hex() for span_id in manifest if span_id and span_id not in self.steps.spans]
        if absent:
            examples = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            raise AttributeDecodeError(f"{len(absent)} of {len(manifest) - open_count} step spans: {examples}")
        candidates = [self.steps.candidates(span_id) if span_id else [next(open_steps)] for span_id in manifest]
        for combination in islice(product(*candidates), _MAX_COMBINATIONS):
            yield list(combination)

    def _open_steps(self, count: int) -> list[Step]:
        if not count:
            return []
        text = (decode_text(self.attributes, OPEN_STEPS) or b"[]").decode()
        try:
            steps = [parse_open_step(element.value_text) for element in elements(text, 0)]
        except (ValueError, DocumentError):
            raise AttributeDecodeError(f"attribute {OPEN_STEPS} is damaged") from None
        if len(steps) != count:
            raise AttributeDecodeError(f"{len(steps)} of {count} open steps")
        return steps


def _decode_candidates(spans: list[_StepSpan]) -> list[Step]:
    """Return the steps of spans with the same id: of the latest span, of the first, then of the others.

    The first span is usually the stored one, so it must be tried even if there are many others. Raises
    AttributeDecodeError if no span can be decoded.
    """
    if len(spans) == 1:
        return [decode_step(*spans[0])]
    steps: list[Step] = []
    seen: list[Span] = []
    failure = AttributeDecodeError("")
    for span, attributes in (spans[-1], spans[0], *spans[-2:0:-1]):
        if len(seen) == _MAX_COMBINATIONS:
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
