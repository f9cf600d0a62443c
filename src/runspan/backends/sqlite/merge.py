"""What becomes of a trace when spans of it arrive apart: the document they prove, and what must wait; no I/O.

The stored document is the truth about the spans it was read from, so those are made from it again. Beside them stand
the fragments: spans that came before their head, or before the other spans that their head names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from runspan.backends.sqlite.rows import fingerprint, spans_of
from runspan.decode import Decoded, read_run
from runspan.encode import content_step_ids
from runspan.errors import TraceIncomplete
from runspan.fields import DIGEST, REVISION, ROLE, ROLE_RUN, ROLE_SNAPSHOT, ROLE_STEP, ROOT_REVISION
from runspan.run import Run
from runspan.span import Span

HEAD_ROLES = frozenset({ROLE_RUN, ROLE_SNAPSHOT})
OWN_ROLES = HEAD_ROLES | {ROLE_STEP}


class Settled(NamedTuple):
    """decoded: the newest revision proved, or None. loose: the fragments that must wait, in order of arrival."""

    decoded: Decoded | None
    loose: list[Span]


def settle(stored: Sequence[Span], loose: Sequence[Span], seen: Sequence[bytes] = ()) -> Settled:
    """What all spans of a trace amount to. stored: of the stored revision. loose: in order of arrival.

    A step waits unless the document has it: its head may be on the way. A head waits only while it ranks above what is
    proved, since no other revision will ever be asked for.

    seen: digests of documents that the stored one took the place of, at its own revision. A head of one of these that
    comes alone is a delivery repeated, most likely; so it waits, but the stored document is not incomplete for it.
    """
    try:
        decoded = read_run([*stored, *loose])
    except TraceIncomplete:
        return Settled(None, list(loose))
    unproved = bool(decoded.incomplete)
    if unproved and seen:
        others = [span for span in loose if not _is_head_of(span, seen)]
        decoded = replace(decoded, incomplete=read_run([*stored, *others]).incomplete)
    again = spans_of(decoded.run, decoded.tenant, decoded.revision, decoded.step_ids)
    known = {fingerprint(span) for span in again}
    digest = sha256(decoded.run.text).hexdigest()
    waiting = []
    for span in loose:
        attributes = span.attributes()
        if attributes.get(ROLE) not in HEAD_ROLES:
            if fingerprint(span) not in known:
                waiting.append(span)
        elif unproved:
            rank = attributes.get(REVISION)
            revision = rank if type(rank) is int else -1
            if revision > decoded.revision or (revision == decoded.revision and attributes.get(DIGEST) != digest):
                waiting.append(span)
    return Settled(decoded, waiting)


def _is_head_of(span: Span, digests: Sequence[bytes]) -> bool:
    digest = span.attributes().get(DIGEST)
    return isinstance(digest, str) and any(digest.startswith(found.hex()) for found in digests)


def accounts_for(decoded: Decoded, spans: Sequence[Span]) -> bool:
    """Whether the document was read from exactly these spans: its steps, each once, and its head."""
    step_ids = set(decoded.step_ids)
    return (
        not decoded.incomplete
        and len(spans) == len(step_ids) + 1 == len(decoded.step_ids) + 1
        and len(step_ids.union([span.span_id for span in spans])) == len(spans)
    )


def foreign_step_ids(decoded: Decoded) -> list[bytes] | None:
    """The ids of the step spans, unless ``encode`` gives the same."""
    if not decoded.step_ids:
        return None
    return None if content_step_ids(decoded.run, decoded.tenant) == decoded.step_ids else decoded.step_ids


def next_revision(stored: int, run: Run, observed_at: int) -> int:
    """The revision of a changed document that was read whole: above the stored one always."""
    if stored >= ROOT_REVISION:
        return max(ROOT_REVISION + observed_at, stored + 1)
    return first_revision(run, max(observed_at, stored + 1))


def first_revision(run: Run, observed_at: int) -> int:
    """The revision of a document that was read whole and is the first of its run."""
    return ROOT_REVISION if run.finished else observed_at
