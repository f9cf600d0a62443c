"""A stored revision of a run, and what it becomes when further spans of the trace arrive; no I/O.

The stored document proves the spans that it was read from, so its steps are not proved again, and keep the ids that
their spans came with. The manifest says which steps have a span, and the revision says which revision span there is:
both may come from a version of runspan for which other statuses end a step or a run.

Fragments are spans that arrived before their revision span or before other spans of its manifest, and steps that only
an older or a newer revision than the stored one has. A sender whose step span was accepted never sends it again, so no
step is deleted before the stored document has it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from threading import Lock
from typing import Final, NamedTuple

from runspan.backends.sqlite.queries import REVISION_ROLES, StoredRow
from runspan.codec import fields
from runspan.codec.attributes import AttributeDecodeError, decode_step, decode_text, read_attributes, step_template
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.codec.encode import RunEncoder, content_step_ids
from runspan.codec.growth import Front
from runspan.errors import TraceIncomplete
from runspan.model.document import SUMMARY_MEMBERS, TERMINAL_STEP_STATUSES, Envelope, Run, Step, run_text
from runspan.model.span import Span, Value

_RECENT_BYTES: Final = 96 << 20
_RUN_BYTES: Final = 1200
_PARSED_SIZE: Final = 7
"""What a run takes in memory, about: so many bytes, and so many times those of its text. Small runs are many."""
_ID_BYTES = 8
_NO_ID = bytes(_ID_BYTES)
"""In the column ``step_ids``: a step without a span. No span has this id."""


@dataclass(frozen=True)
class StoredRevision:
    """A proved revision of a run."""

    run: Run
    tenant: str
    revision: int
    step_ids: list[bytes]
    """The id of the span of each step, empty for a step without one."""
    time: int
    """Where the run lies in time, in nanoseconds since 1970."""
    frames: bytes = b""
    """The document as it is stored, if it is known."""

    @cached_property
    def front(self) -> Front:
        """The front of a plain document with a list of steps."""
        return Front.of(self.run, self.step_ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document, hex."""
        return sha256(self.run.text).hexdigest()

    @cached_property
    def steps(self) -> dict[bytes, Step]:
        """The steps that have a span, by its id, in order."""
        return {span_id: step for span_id, step in zip(self.step_ids, self.run.steps, strict=True) if span_id}

    def packed_step_ids(self) -> bytes | None:
        """Return the column ``step_ids``: the id of each step, or a zero; None if they are those of ``encode``.

        A run that has not ended has them always: it is written with each step, and making them takes longer each time.
        """
        if self.revision >= fields.ROOT_REVISION and self.step_ids == _content_step_ids(
            self.run, self.tenant, self.time
        ):
            return None
        ids = self.step_ids
        return b"".join([span_id or _NO_ID for span_id in ids] if b"" in ids else ids)


def from_row(
    run: Run, tenant: str, revision: int, packed_step_ids: bytes | None, time: int, frames: bytes = b""
) -> StoredRevision:
    """Return a revision from its columns. Raise ValueError when the ids are not those of its steps, or when a damaged
    row has no integer where there must be one."""
    if type(revision) is not int or type(time) is not int:
        raise ValueError("a revision or a time that is no integer")
    if packed_step_ids is None:
        return StoredRevision(run, tenant, revision, _content_step_ids(run, tenant, time), time, frames)
    ids = split_ids(packed_step_ids)
    if len(ids) != len(run.steps):
        raise ValueError(f"{len(ids)} step ids for {len(run.steps)} steps")
    step_ids = [b"" if span_id == _NO_ID else span_id for span_id in ids]
    return StoredRevision(run, tenant, revision, step_ids, time, frames)


class RecentRevisions:
    """The latest revisions of runs that grow, so that the next step of one is added to a document that is parsed.

    Of each run one is kept, and of all runs as many as take ``_RECENT_BYTES`` of memory. May be used from several
    threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: dict[bytes, tuple[StoredRow, StoredRevision]] = {}
        """By trace id, in the order in which they were added."""
        self._bytes = 0

    def get(self, trace_id: bytes) -> tuple[StoredRow, StoredRevision] | None:
        """Return the row of a run as it was read or written last, and its revision; None if they are not kept."""
        with self._lock:
            return self._found.get(trace_id)

    def add(self, trace_id: bytes, row: StoredRow, revision: StoredRevision) -> None:
        """Keep the revision of a run in place of an earlier one."""
        with self._lock:
            self._remove(trace_id)
            if revision.revision < fields.ROOT_REVISION:
                self._found[trace_id] = row, revision
                self._bytes += _memory_size(revision)
            while self._bytes > _RECENT_BYTES:
                self._remove(next(iter(self._found)))

    def _remove(self, trace_id: bytes) -> None:
        _, revision = self._found.pop(trace_id, (None, None))
        self._bytes -= 0 if revision is None else _memory_size(revision)


def _memory_size(revision: StoredRevision) -> int:
    return _RUN_BYTES + _PARSED_SIZE * len(revision.run.text) + len(revision.frames)


def split_ids(packed: bytes) -> list[bytes]:
    """Return the ids in packed bytes."""
    return [packed[start : start + _ID_BYTES] for start in range(0, len(packed), _ID_BYTES)]


def _content_step_ids(run: Run, tenant: str, time: int) -> list[bytes]:
    """Return the ids that ``encode`` gives to the steps, empty for a step that has not ended."""
    ids = iter(content_step_ids(run, tenant, time))
    return [next(ids) if step.status in TERMINAL_STEP_STATUSES else b"" for step in run.steps]


def from_verified(verified: VerifiedRun) -> StoredRevision:
    """Return what was decoded."""
    return StoredRevision(verified.run, verified.tenant, verified.revision, verified.manifest, verified.position)


def from_growth(verified: VerifiedRun, front: Front, frames: bytes) -> StoredRevision:
    """Return what a stored revision has grown to."""
    revision = replace(from_verified(verified), frames=frames)
    revision.__dict__["front"] = front
    return revision


def iter_spans(stored: StoredRevision) -> Iterator[Span]:
    """Yield the spans that a revision was read from, the attempts of its steps, and the revision span last."""
    revision = stored.revision
    encoder = RunEncoder(
        stored.run,
        stored.tenant,
        observed_at=stored.time if revision == fields.ROOT_REVISION else fields.observed_time(revision),
        after_root=revision > fields.ROOT_REVISION,
        is_root=revision == fields.ROOT_REVISION,
    )
    ids = [span_id for span_id in stored.step_ids if span_id]
    return encoder.iter_spans(ids, [bool(span_id) for span_id in stored.step_ids])


def step_spans(stored: StoredRevision) -> list[Span]:
    """Return the step spans of a revision."""
    encoder = RunEncoder(stored.run, stored.tenant, observed_at=stored.time)
    return [
        encoder.step_span(step, span_id, step_template(fields.STEP_TABLE.get_labels(step)))
        for span_id, step in stored.steps.items()
    ]


def revision_of(attributes: Mapping[str, Value]) -> int:
    """Return the revision in the attributes of a revision span; -1 when it is no integer."""
    revision = attributes.get(fields.REVISION)
    return revision if type(revision) is int else -1


def manifest_ids(revision_span: Span) -> list[bytes]:
    """Return the ids of the step spans that a revision span needs; none if its manifest cannot be read."""
    attributes = read_attributes(revision_span)
    try:
        manifest = (fields.STEP_COUNT in attributes and decode_text(attributes, fields.MANIFEST)) or b""
        # The mark of an open step is as long as an id.
        return split_ids(bytes.fromhex(manifest.replace(fields.OPEN_STEP_MARK.encode(), b"").decode()))
    except (AttributeDecodeError, ValueError):
        return []


# Merging.

_SpanAttributes = tuple[Span, dict[str, Value]]


class MergeResult(NamedTuple):
    """The state of a trace."""

    revision: StoredRevision | None
    """The newest revision proved, which may be the stored one itself; None when none is proved."""
    incomplete: tuple[str, ...]
    """What is missing of newer revisions, one line each."""
    fragments: list[Span]
    """The spans that must wait for others, in order of arrival."""
    conflict: tuple[str, ...] = ()
    """The digests of other documents that the fragments prove at the same revision, in hex."""


def merge_fragments(
    stored: StoredRevision | None,
    fragments: Sequence[Span],
    superseded: Sequence[bytes] = (),
    needed: Container[bytes] | None = None,
    stand_ins: Sequence[Span] = (),
) -> MergeResult:
    """Return the state of a trace with a stored revision and fragments, which are in order of arrival.

    A step span waits unless the document has it: its revision span may be on the way. A revision span waits only while
    it ranks above the proved revision, since no older one is ever read. The stored revision is not proved again, so it
    stays readable whatever arrives.

    superseded: digests of documents that the stored one has replaced at its own revision. A revision span with one of
    these that arrives alone is most likely a repeated delivery; so it waits, but does not make the stored document
    incomplete.
    needed: the ids of the steps of all revisions that may be complete; None for those of any step.
    stand_ins: in place of further step spans, which only incomplete revisions need; see ``waiting.Relevant``.
    """
    pairs = [(span, read_attributes(span)) for span in fragments]
    all_pairs = [*pairs, *[(span, span.attributes()) for span in stand_ins]]
    try:
        newest, missing, conflict = _prove(stored, all_pairs, needed)
    except TraceIncomplete:
        return MergeResult(None, (), list(fragments))
    incomplete = missing
    if missing and superseded and stored is not None:
        incomplete = _prove(stored, [pair for pair in all_pairs if not _has_digest(pair[1], superseded)], needed)[1]
    waiting = []
    steps = newest.steps
    for span, attributes in pairs:
        if attributes.get(fields.ROLE) in REVISION_ROLES:
            if missing and _ranks_above(attributes, newest):
                waiting.append(span)
        elif span.span_id not in steps or not _has_step(span, attributes, steps[span.span_id]):
            waiting.append(span)
    return MergeResult(newest, incomplete, waiting, conflict)


def superseded_steps(before: StoredRevision, after: StoredRevision) -> StoredRevision | None:
    """Return the run with only the steps that another revision of it does not have, None if there are none.

    It has no payloads and no unknown members: its spans are those of ``before``.
    """
    steps = after.steps
    kept = [(span_id, step) for span_id, step in before.steps.items() if not _same_step(steps.get(span_id), step)]
    if not kept:
        return None
    labels = {name: getattr(before.run.envelope, name) for name in SUMMARY_MEMBERS if name not in ("id", "error")}
    envelope = Envelope(id=before.run.id, **labels, steps=[step for _, step in kept])
    run = Run(envelope, run_text(envelope))
    return StoredRevision(run, before.tenant, before.revision, [span_id for span_id, _ in kept], before.time)


def is_exact_match(verified: VerifiedRun, spans: Sequence[Span]) -> bool:
    """Return whether the document was read from exactly these spans: its steps, each once, and its revision span."""
    step_ids = set(verified.step_ids)
    return (
        not verified.incomplete
        and len(spans) == len(step_ids) + 1 == len(verified.step_ids) + 1
        and len(step_ids.union([span.span_id for span in spans])) == len(spans)
    )


def _prove(
    stored: StoredRevision | None, pairs: Sequence[_SpanAttributes], needed: Container[bytes] | None
) -> tuple[StoredRevision, tuple[str, ...], tuple[str, ...]]:
    """Return the newest revision, what is missing of newer ones, and the digests of other documents at its revision.

    Raise TraceIncomplete when no revision is stored and none is proved.
    """
    spans = [span for span, _ in pairs]
    if stored is None:
        verified = verify_run(spans)
        return from_verified(verified), verified.incomplete, verified.conflict
    # A revision span of the stored document counts as an arrival of that document.
    repeated = max([index for index, (_, attributes) in enumerate(pairs) if _is_of(attributes, stored)], default=-1)
    spans = []
    has_newer = False
    for index, (span, attributes) in enumerate(pairs):
        if attributes.get(fields.ROLE) not in REVISION_ROLES:
            spans.append(span)
        elif _ranks_above(attributes, stored) and (index > repeated or revision_of(attributes) > stored.revision):
            spans.append(span)
            has_newer = True
    if not has_newer:
        return stored, (), ()
    try:
        known = {span_id: step for span_id, step in stored.steps.items() if needed is None or span_id in needed}
        verified = verify_run(spans, known)
    except TraceIncomplete as error:
        return stored, error.missing, ()
    return from_verified(verified), verified.incomplete, verified.conflict


def _ranks_above(attributes: Mapping[str, Value], stored: StoredRevision) -> bool:
    """Return whether a revision span has a newer revision, or another document at the same revision."""
    revision = revision_of(attributes)
    return revision > stored.revision or (
        revision == stored.revision and attributes.get(fields.DIGEST) != stored.digest
    )


def _is_of(attributes: Mapping[str, Value], stored: StoredRevision) -> bool:
    """Return whether these are the attributes of a revision span of this very revision."""
    same = attributes.get(fields.DIGEST) == stored.digest and revision_of(attributes) == stored.revision
    return same and attributes.get(fields.ROLE) in REVISION_ROLES


def _has_digest(attributes: Mapping[str, Value], digests: Sequence[bytes]) -> bool:
    digest = attributes.get(fields.DIGEST)
    return isinstance(digest, str) and any(digest.startswith(found.hex()) for found in digests)


def _has_step(span: Span, attributes: dict[str, Value], step: Step) -> bool:
    """Return whether a span carries this step: a Collector that adds attributes does not change it."""
    try:
        return _same_step(decode_step(span, attributes), step)
    except AttributeDecodeError:
        return False


def _same_step(one: Step | None, other: Step) -> bool:
    return one == other and one is not None and one.extra == other.extra
