"""What becomes of a trace when spans of it arrive apart: the document they prove, and what must wait; no I/O.

The stored document is the truth about the spans it was read from, so of those only what somebody asks for is made from
it again. Beside it stand the fragments: spans that came before their head or before the other spans that their head
names, and steps that only an older or a newer head than the stored one names. A sender that was told "taken" sends a
step never again, so no step is forgotten before the document that is stored tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runspan.backends.sqlite.revision import StoredRevision, from_row, revision_of, step_spans
from runspan.codec.attributes import AttributeDecodeError, decode_step, decode_text
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    OPEN_STEP_MARK,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    ROOT_REVISION,
)
from runspan.errors import TraceIncomplete
from runspan.model.document import Step
from runspan.model.run import Run
from runspan.model.span import Span, Value

REVISION_ROLES = frozenset({ROLE_RUN, ROLE_REVISION})
OWN_ROLES = REVISION_ROLES | {ROLE_STEP}

_StepsByEnd = tuple[Span, dict[str, Value]]


class MergeResult(NamedTuple):
    """known: the newest revision proved, the given one itself when it is that, or None. incomplete: what is missing of
    newer ones, one line each. loose: the fragments that must wait, in order of arrival."""

    known: StoredRevision | None
    incomplete: tuple[str, ...]
    loose: list[Span]


def merge_fragments(base: StoredRevision | None, loose: Sequence[Span], seen: Sequence[bytes] = ()) -> MergeResult:
    """What all spans of a trace amount to. base: the stored revision. loose: in order of arrival.

    A step waits unless the document tells it: its head may be on the way. A head waits only while it ranks above what
    is proved, since no other revision will ever be asked for. The stored revision is never proved anew, so whatever
    comes beside it, it stays readable.

    seen: digests of documents that the stored one took the place of, at its own revision. A head of one of these that
    comes alone is a delivery repeated, most likely; so it waits, but the stored document is not incomplete for it.
    """
    told = [(span, span.attributes()) for span in loose]
    try:
        known, unproved = _prove(base, told)
    except TraceIncomplete:
        return MergeResult(None, (), list(loose))
    incomplete = unproved
    if unproved and seen and base is not None:
        incomplete = _prove(base, [item for item in told if not _is_revision_span_of(item[1], seen)])[1]
    waiting = []
    if base is not None and known.revision != base.revision:
        waiting += superseded_steps(base, known)
    steps = known.steps
    for span, attributes in told:
        if attributes.get(ROLE) in REVISION_ROLES:
            if unproved and _ranks_above(attributes, known):
                waiting.append(span)
        elif span.span_id not in steps or not _matches_step(span, attributes, steps[span.span_id]):
            waiting.append(span)
    return MergeResult(known, incomplete, waiting)


def superseded_steps(before: StoredRevision, after: StoredRevision) -> list[Span]:
    """The step spans of one revision that another does not make again."""
    names = superseded_span_ids(before, after)
    return step_spans(before, names) if names else []


def superseded_span_ids(before: StoredRevision, after: StoredRevision) -> set[bytes]:
    """Their ids."""
    told = after.steps
    return {name for name, step in before.steps.items() if not _same(told.get(name), step)}


def _same(one: Step | None, other: Step) -> bool:
    return one == other and one is not None and one.extra == other.extra


def steps_named(head: Span) -> int:
    """How many step spans a head needs, by its manifest; 0 when that cannot be read."""
    try:
        manifest = decode_text(head.attributes(), MANIFEST) or b""
    except AttributeDecodeError:
        return 0
    return (len(manifest) - manifest.count(b".")) // len(OPEN_STEP_MARK)


def _prove(base: StoredRevision | None, told: Sequence[_StepsByEnd]) -> tuple[StoredRevision, tuple[str, ...]]:
    """The newest revision and what is missing of newer ones. TraceIncomplete only when there is no base."""
    spans = [span for span, _ in told]
    if base is None:
        decoded = verify_run(spans)
        return from_row(decoded, spans), decoded.incomplete
    again = max([at for at, (_, attributes) in enumerate(told) if _is(attributes, base)], default=-1)
    spans = []
    heads = False
    for at, (span, attributes) in enumerate(told):
        if attributes.get(ROLE) not in REVISION_ROLES:
            spans.append(span)
        elif _ranks_above(attributes, base) and (at > again or revision_of(attributes) > base.revision):
            spans.append(span)
            heads = True
    if not heads:
        return base, ()
    try:
        decoded = verify_run([*step_spans(base), *spans])
    except TraceIncomplete as error:
        return base, error.missing
    return from_row(decoded, spans), decoded.incomplete


def _ranks_above(attributes: dict[str, Value], known: StoredRevision) -> bool:
    """Whether a head tells a newer revision, or at the same one another document."""
    revision = revision_of(attributes)
    return revision > known.revision or (revision == known.revision and attributes.get(DIGEST) != known.digest)


def _is(attributes: dict[str, Value], known: StoredRevision) -> bool:
    """Whether these are of a head of this very revision."""
    same = attributes.get(DIGEST) == known.digest and revision_of(attributes) == known.revision
    return same and attributes.get(ROLE) in REVISION_ROLES


def _is_revision_span_of(attributes: dict[str, Value], digests: Sequence[bytes]) -> bool:
    digest = attributes.get(DIGEST)
    return isinstance(digest, str) and any(digest.startswith(found.hex()) for found in digests)


def _matches_step(span: Span, attributes: dict[str, Value], step: Step) -> bool:
    """Whether a span tells this step: a Collector that adds attributes does not change it."""
    try:
        return _same(decode_step(span, attributes), step)
    except AttributeDecodeError:
        return False


def is_exact_match(decoded: VerifiedRun, spans: Sequence[Span]) -> bool:
    """Whether the document was read from exactly these spans: its steps, each once, and its head."""
    step_ids = set(decoded.step_ids)
    return (
        not decoded.incomplete
        and len(spans) == len(step_ids) + 1 == len(decoded.step_ids) + 1
        and len(step_ids.union([span.span_id for span in spans])) == len(spans)
    )


def next_revision(stored: int, run: Run, observed_at: int) -> int:
    """The revision of a changed document that was read whole: above the stored one always."""
    if stored >= ROOT_REVISION:
        return max(ROOT_REVISION + observed_at, stored + 1)
    return first_revision(run, max(observed_at, stored + 1))


def first_revision(run: Run, observed_at: int) -> int:
    """The revision of a document that was read whole and is the first of its run."""
    return ROOT_REVISION if run.finished else observed_at


def revision_seen_again(stored: int, observed_at: int) -> int:
    """The revision of a document of a run that has not ended, when it was read once more as it is stored."""
    return max(stored, observed_at + (ROOT_REVISION if stored >= ROOT_REVISION else 0))
