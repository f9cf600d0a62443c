"""The decoder, which rebuilds and verifies the run document of a trace's spans; no I/O, no clock.

The spans of a trace may come in any order, duplicated, incomplete and mixed with foreign spans. Revision spans are
tried from the highest revision down. A revision is verified if every step span of its manifest is present and the
rebuilt document has the digest that the revision span carries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, product
from operator import itemgetter
from struct import Struct

from msgspec import UNSET, Raw, UnsetType

from runspan.codec import fields
from runspan.codec.attributes import (
    AttributeDecodeError,
    decode_extra,
    decode_members,
    decode_step,
    decode_text,
    parse_open_step,
    read_attributes,
)
from runspan.codec.facts import decode_label_set
from runspan.errors import DocumentError, NotFound, TraceIncomplete
from runspan.model.document import (
    SUMMARY_MEMBERS,
    Envelope,
    Run,
    Step,
    end_time,
    parse_document,
    run_text,
    str_or_none,
    summary_text,
    with_extra_run,
)
from runspan.model.json_scanner import elements, is_json_value
from runspan.model.span import Span, Value, run_ids, summary_digest

_ID_DIGITS = len(fields.OPEN_STEP_MARK)
_NO_ID = b""
_IDS = Struct(f"{_ID_DIGITS // 2}s")
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
    manifest: list[bytes]
    """The span ids of the steps in the order of the document, empty for an open step."""
    position: int
    """Where the run lies in time, in nanoseconds since 1970: the start of the revision span."""
    incomplete: tuple[str, ...] = ()
    """What is missing of newer revisions, one line each."""
    conflict: tuple[str, ...] = ()
    """The digests of other documents that were sent as the same revision, in hex."""

    @property
    def step_ids(self) -> list[bytes]:
        """The span ids of the finished steps, in the order of the document."""
        return [span_id for span_id in self.manifest if span_id]


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


def verify_run(spans: Iterable[Span], known_steps: Mapping[bytes, Step] | None = None) -> VerifiedRun:
    """Return the newest revision that can be verified.

    ``known_steps``: steps that were verified before, by the ids of their spans, which need not be among the spans.

    Of different documents with the same revision, the one with the highest digest is returned, whatever the order of
    the spans, and the others are reported as a conflict. Raises TraceIncomplete if no revision can be verified and
    NotFound if there is no span of runspan.
    """
    revisions: list[tuple[int, str, int, Span, dict[str, Value]]] = []
    steps = _StepSpans(known_steps or {})
    for order, span in enumerate(spans):
        attributes = read_attributes(span) if span.events else span.attributes()
        role = attributes.get(fields.ROLE)
        if role == fields.ROLE_STEP:
            steps.spans.setdefault(span.span_id, []).append((span, attributes))
        elif role in (fields.ROLE_RUN, fields.ROLE_REVISION):
            revision, digest = attributes.get(fields.REVISION), attributes.get(fields.DIGEST)
            rank = revision if type(revision) is int else -1
            revisions.append((rank, digest if type(digest) is str else "", order, span, attributes))
    if not revisions and not steps.spans:
        raise NotFound("the trace has no span of runspan", expected="a span with the attribute runspan.role")
    missing = {} if revisions else {f"the run span; the trace has {len(steps.spans)} step spans": None}
    revisions.sort(key=itemgetter(0, 1, 2), reverse=True)
    for place, (revision, digest, _, span, attributes) in enumerate(revisions):
        try:
            run, manifest = steps.verify(span, attributes)
        except AttributeDecodeError as error:
            missing[f"revision {revision}: {error}"] = None
            continue
        tenant = attributes.get(fields.TENANT, "")
        others = {other[1]: other for other in revisions[place:] if other[0] == revision and other[1] != digest}
        conflict = tuple([found for found, other in others.items() if _is_verified(other, steps)])
        return VerifiedRun(
            run, tenant if type(tenant) is str else "", revision, manifest, span.start, _limited(missing), conflict
        )
    raise TraceIncomplete("no revision of the run can be verified", missing=_limited(missing), hint=_RETRY_HINT)


def _is_verified(revision: tuple[int, str, int, Span, dict[str, Value]], steps: _StepSpans) -> bool:
    try:
        steps.verify(*revision[3:])
    except AttributeDecodeError:
        return False
    return True


def _limited(missing: Mapping[str, None]) -> tuple[str, ...]:
    lines = tuple(missing)
    if len(lines) <= _MAX_REPORTED:
        return lines
    return *lines[:_MAX_REPORTED], f"and {len(lines) - _MAX_REPORTED} older revisions"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The list item of a revision span, verified by its own digest, without the steps."""

    run_id: str
    tenant: str
    revision: int
    digest: str
    """That of the document, which only the steps can verify."""
    workflow_id: str | None
    status: str | None
    time: int
    """The sort time, see ``contracts.RunQuery``."""
    summary: bytes
    """The JSON text of the list item."""
    ended: int | None
    """See ``model.document.end_time``."""
    models: frozenset[str] | None = None
    """Those that its steps used; None if the list item does not say."""
    step_types: frozenset[str] | None = None
    """The types of its steps, likewise."""


def read_summary(span: Span) -> RunSummary | None:
    """Return the summary of a revision span, or None for any other span.

    Raises TraceIncomplete if the summary does not have the recorded digest, which has the revision and the position in
    time as well.
    """
    attributes = read_attributes(span) if span.events else span.attributes()
    revision = attributes.get(fields.REVISION)
    run_id, tenant = attributes.get(fields.RUN_ID), attributes.get(fields.TENANT, "")
    role, digest = attributes.get(fields.ROLE), attributes.get(fields.DIGEST)
    if role not in (fields.ROLE_RUN, fields.ROLE_REVISION):
        return None
    try:
        if type(revision) is not int or type(run_id) is not str or type(tenant) is not str or type(digest) is not str:
            raise AttributeDecodeError(f"attribute {fields.REVISION}, {fields.RUN_ID} or {fields.DIGEST} is missing")
        if run_ids(run_id, tenant).trace_id != span.trace_id:
            raise AttributeDecodeError(f"the trace id does not follow from run id {run_id!r}")
        values = decode_members(attributes, fields.SUMMARY_TABLE, span, has_end=role == fields.ROLE_RUN)
        envelope = Envelope(id=run_id, **values)
        for name in SUMMARY_MEMBERS:
            value = getattr(envelope, name)
            if type(value) is Raw and not is_json_value(bytes(value)):
                raise AttributeDecodeError(f"{name} is not a JSON value")
        summary = summary_text(envelope)
        sets = [(decode_text(attributes, key) or b"").decode() for key in fields.LABEL_SETS]
        if attributes.get(fields.SUMMARY_DIGEST) != summary_digest(summary, sets, tenant, revision, span.start):
            raise AttributeDecodeError("the list item does not have the recorded digest: the span was changed")
        models, used_types = [decode_label_set(text) for text in sets]
    except AttributeDecodeError as error:
        raise TraceIncomplete("a revision span is damaged", where=f"run {run_id!r}", missing=(str(error),)) from None
    return RunSummary(
        run_id,
        tenant,
        revision,
        digest,
        str_or_none(envelope.workflow_id),
        str_or_none(envelope.status),
        span.start,
        summary,
        end_time(envelope, span.start),
        models,
        used_types,
    )


class _StepSpans:
    """The step spans of a trace by span id, and the bounds on rebuilding documents from them."""

    def __init__(self, known: Mapping[bytes, Step]) -> None:
        self.spans: dict[bytes, list[_StepSpan]] = {}
        self._known = known
        self._decoded: dict[bytes, list[Step]] = {}
        self._rebuilds = self._bytes = 0

    def verify(self, span: Span, attributes: Mapping[str, Value]) -> tuple[Run, list[bytes]]:
        """Return the verified run of a revision span, and its manifest. Raises AttributeDecodeError."""
        run_id = attributes.get(fields.RUN_ID)
        tenant = attributes.get(fields.TENANT, "")
        if type(run_id) is not str or type(tenant) is not str:
            raise AttributeDecodeError(f"attribute {fields.RUN_ID} is missing")
        if run_ids(run_id, tenant).trace_id != span.trace_id:
            raise AttributeDecodeError(f"the trace id does not follow from run id {run_id!r}")
        manifest = read_manifest(attributes)
        is_root = attributes.get(fields.ROLE) == fields.ROLE_RUN
        values = decode_members(attributes, fields.RUN_TABLE, span, has_end=is_root)
        extra = decode_extra(attributes, fields.RUN_EXTRA)
        for steps in self._step_lists(attributes, manifest):
            envelope = with_extra_run(Envelope(id=run_id, steps=steps, **values), extra)
            text = self._rebuild(envelope)
            if sha256(text).hexdigest() == attributes.get(fields.DIGEST):
                break
        else:
            raise AttributeDecodeError("the rebuilt document does not have the recorded digest: spans were changed")
        try:
            return Run(*parse_document(text)), manifest or []
        except DocumentError as error:
            raise AttributeDecodeError(f"the document is not one that encode writes: {error}") from None

    def _candidates(self, span_id: bytes) -> list[Step]:
        """Return the steps of the spans with this id. Raises AttributeDecodeError if none can be decoded."""
        known = self._known.get(span_id)
        if known is not None and span_id not in self.spans:
            return [known]
        steps = self._decoded.get(span_id)
        if steps is None:
            try:
                steps = _decode_candidates(self.spans[span_id])
            except AttributeDecodeError:
                if known is None:
                    raise
                steps = []
            if known is not None:
                steps.insert(1, known)
            self._decoded[span_id] = steps
        return steps

    def _rebuild(self, envelope: Envelope) -> bytes:
        """Return the document's text. Raises AttributeDecodeError after too many documents."""
        if self._rebuilds >= _MAX_REBUILDS or (self._bytes >= _MAX_BYTES and self._rebuilds >= _MIN_REBUILDS):
            raise AttributeDecodeError("not tried: too many newer revisions could not be verified")
        text = run_text(envelope)
        self._rebuilds += 1
        self._bytes += len(text)
        return text

    def _step_lists(
        self, attributes: Mapping[str, Value], manifest: list[bytes] | None
    ) -> Iterator[list[Step] | UnsetType | None]:
        """Yield the possible lists of steps: one, unless spans with different content have the same id."""
        if manifest is None:
            yield None if attributes.get(fields.MANIFEST + fields.NON_CANONICAL) == "null" else UNSET
            return
        open_count = manifest.count(_NO_ID)
        open_steps = iter(read_open_steps(attributes, open_count))
        absent = [
            span_id.hex()
            for span_id in manifest
            if span_id and span_id not in self.spans and span_id not in self._known
        ]
        if absent:
            examples = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            raise AttributeDecodeError(f"{len(absent)} of {len(manifest) - open_count} step spans: {examples}")
        candidates = [self._candidates(span_id) if span_id else [next(open_steps)] for span_id in manifest]
        for combination in islice(product(*candidates), _MAX_COMBINATIONS):
            yield list(combination)


def read_manifest(attributes: Mapping[str, Value], known: Sequence[bytes] = ()) -> list[bytes] | None:
    """Return the span ids of the steps, empty for an open step, or None if the document has no list of steps.

    ``known``: different span ids with which it is likely to begin, and which are not read again then.

    Raises AttributeDecodeError for a manifest that is none.
    """
    count = attributes.get(fields.STEP_COUNT)
    if count is None:
        return None
    manifest = (decode_text(attributes, fields.MANIFEST) or b"").decode()
    if type(count) is not int or len(manifest) != count * _ID_DIGITS:
        raise AttributeDecodeError(f"the manifest has {len(manifest) // _ID_DIGITS} of {count!r} steps")
    known_digits = b"".join(known).hex()
    if manifest.startswith(known_digits):
        manifest = manifest[len(known_digits) :]
    else:
        known = ()
    digits = manifest.replace(fields.OPEN_STEP_MARK, "0" * _ID_DIGITS)
    mark = manifest.find(fields.OPEN_STEP_MARK)
    try:
        packed = bytes.fromhex(digits)
    except ValueError:
        packed = b""
    if packed.hex() != digits:  # as for capitals
        raise AttributeDecodeError("the manifest has an entry that is not a span id")
    span_ids = [span_id for (span_id,) in _IDS.iter_unpack(packed)]
    while mark >= 0:
        if mark % _ID_DIGITS:
            raise AttributeDecodeError("the manifest has an entry that is not a span id")
        span_ids[mark // _ID_DIGITS] = _NO_ID
        mark = manifest.find(fields.OPEN_STEP_MARK, mark + _ID_DIGITS)
    finished = [span_id for span_id in span_ids if span_id]
    if len(set(finished)) != len(finished) or not set(finished).isdisjoint(known):
        raise AttributeDecodeError("the manifest has a span id twice")
    return [*known, *span_ids]


def read_open_steps(attributes: Mapping[str, Value], count: int) -> list[Step]:
    """Return the open steps, as many as the manifest has. Raises AttributeDecodeError."""
    if not count:
        return []
    text = (decode_text(attributes, fields.OPEN_STEPS) or b"[]").decode()
    try:
        steps = [parse_open_step(element.value_text) for element in elements(text, 0)]
    except (ValueError, DocumentError):
        raise AttributeDecodeError(f"attribute {fields.OPEN_STEPS} is damaged") from None
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
