"""The spans of a trace that wait for others: which of them must be read when spans arrive, and how many there may be.

A trace may have tens of thousands of them, and its next span arrives a moment later. So a revision span is stored with
the id of one step span that it lacks, and until that one arrives, no waiting span is read. Then only those are read
that a revision with all its steps needs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.queries import REVISION, REVISION_ROLES, STEP, SUPERSEDED, FragmentRow, Waiting
from runspan.backends.sqlite.revision import StoredRevision, manifest_ids, revision_of, split_ids
from runspan.codec.fields import ROLE, ROLE_STEP
from runspan.model.span import Span

_FEW: Final = 1000
_GROWTH: Final = 16
"""A revision that its steps do not prove is tried again with each span while few wait, then with a sixteenth more."""
_MAX_SUPERSEDED: Final = 256
"""Rows of superseded steps of one trace."""


# Limits.


class Size(NamedTuple):
    """How much some of the waiting spans are."""

    spans: int = 0
    bytes: int = 0

    def plus(self, spans: int, size: int) -> Size:
        """Return the sum."""
        return Size(self.spans + spans, self.bytes + size)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one run, and the spans of one tenant that wait for others, may take."""

    max_steps: int = 100_000
    """Steps of one run. Of one trace twice as many spans may wait, and twice as many of other instrumentation stay."""
    max_waiting_spans: int = 1_000_000
    """Spans of one tenant that wait for others."""
    max_waiting_bytes: int = 1 << 30
    """Bytes of these spans. Those of one trace may take a quarter."""

    @property
    def max_foreign_spans(self) -> int:
        """Spans of other instrumentation in one trace."""
        return 2 * self.max_steps

    def waiting_refusal(
        self, rows: Sequence[FragmentRow], freed: Size, trace: Waiting | None, tenant: tuple[int, int]
    ) -> str | None:
        """Return why further spans may not wait; None when they may.

        freed: what waits no longer then. trace and tenant: what waits already of the trace, and of all of the tenant.
        """
        spans = sum([row.spans for row in rows]) - freed.spans
        size = sum([len(row.content) for row in rows]) - freed.bytes
        trace_spans, trace_bytes = (0, 0) if trace is None else trace[:2]
        for got, limit, what, option in (
            (spans + trace_spans, 2 * self.max_steps, "spans of its trace", "twice --max-steps"),
            (size + trace_bytes, self.max_waiting_bytes // 4, "bytes of its trace", "a quarter of --max-waiting-mib"),
            (spans + tenant[0], self.max_waiting_spans, "spans of its tenant", "--max-waiting-spans"),
            (size + tenant[1], self.max_waiting_bytes, "bytes of its tenant", "--max-waiting-mib"),
        ):
            if got > limit and rows:
                return (
                    f"{got} {what} would wait for spans that complete their runs, and {limit} may (serve {option}): "
                    "send the rest of these runs first; what waits in vain is deleted after a day or by the retention"
                )
        return None


# Reading.


class Fragment(NamedTuple):
    """A row of waiting spans: one span, or the superseded steps of one revision."""

    id: int
    kind: int
    spans: list[Span]
    size: int
    """In bytes."""


ReadFragment = Callable[[sqlite3.Connection, int, bytes], list[Span]]
"""Returns the spans of a fragment of this kind and content."""


@dataclass(slots=True)
class Relevant:
    """The waiting spans of a trace that can change its state."""

    fragments: list[Fragment]
    """All revision spans, and the steps of those that are complete, in order of arrival."""
    needed: set[bytes]
    """The span ids of the steps of the revisions that may be complete."""
    stand_ins: list[Span] = field(default_factory=list)
    """In place of the step spans that only incomplete revisions need: what is missing of these is known by ids."""
    missing: dict[int, bytes] = field(default_factory=dict)
    """The id of a step that a revision span lacks, by ``id()`` of the span."""


def can_wait(
    connection: sqlite3.Connection, trace_id: bytes, tenant: str, spans: Sequence[Span], waiting: Waiting | None
) -> bool:
    """Return whether these spans complete no revision of a trace without a stored run: then they are only stored."""
    if any(map(is_revision_span, spans)):
        return False
    if waiting is None:
        return True
    arrived = {span.span_id for span in spans}
    hints = queries.revision_hints(connection, trace_id, tenant).values()
    return not any(missing in arrived or (missing is None and _is_due(tried, waiting)) for missing, tried in hints)


def _is_due(tried: int, waiting: Waiting) -> bool:
    return waiting.spans <= _FEW or waiting.spans >= tried + tried // _GROWTH


def relevant(
    connection: sqlite3.Connection,
    read: ReadFragment,
    trace_id: bytes,
    tenant: str,
    waiting: Waiting | None,
    *,
    base: StoredRevision | None = None,
    base_is_new: bool = False,
    arrived: Sequence[Span] = (),
) -> Relevant:
    """Return the waiting spans that must be merged with a revision and with spans that have arrived.

    base: the stored revision, or with ``base_is_new`` the one that replaces it: then what it has waits no longer.
    """
    revisions: list[Fragment] = []
    superseded: dict[int, set[bytes]] = {}
    stored_ids: set[bytes] = set()
    if waiting is not None:
        revisions = _read(connection, read, trace_id, tenant, kinds=(REVISION,))
        superseded = _superseded(connection, trace_id, tenant)
        stored_ids = queries.fragment_span_ids(connection, trace_id, tenant)
    known = stored_ids.union(*superseded.values(), [span.span_id for span in arrived])
    needed: set[bytes] = set()
    if base is not None:
        known.update(base.steps)
        if base_is_new:
            needed.update(base.steps)
    found = Relevant(revisions, needed)
    hints = queries.revision_hints(connection, trace_id, tenant) if revisions else {}
    lacking: set[bytes] = set()
    waiting_spans = [(span, hints.get(row.id, (None, 0))) for row in revisions for span in row.spans]
    for span, (missing, tried) in (*waiting_spans, *[(span, (None, 0)) for span in arrived if is_revision_span(span)]):
        if base is not None and revision_of(span.attributes()) < base.revision:
            continue
        ids = manifest_ids(span)
        absent = next((span_id for span_id in reversed(ids) if span_id not in known), None)
        if absent is not None:
            found.missing[id(span)] = absent
        if absent is not None or (missing is None and waiting is not None and not _is_due(tried, waiting)):
            lacking.update(ids)
        else:
            needed.update(ids)
    if base is None and not (needed or lacking):
        lacking = known  # all that a decoder can say is how many they are
    steps = _read(connection, read, trace_id, tenant, span_ids=list(needed & stored_ids))
    wanted = {row_id for row_id, ids in superseded.items() if not needed.isdisjoint(ids)}
    older = _read(connection, read, trace_id, tenant, kinds=(SUPERSEDED,), ids=wanted) if wanted else []
    found.fragments = sorted([*revisions, *steps, *older], key=lambda row: row.id)
    found.stand_ins = [_stand_in(trace_id, span_id) for span_id in (lacking & known) - needed]
    return found


def _superseded(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> dict[int, set[bytes]]:
    """Return the span ids of each row of superseded steps."""
    rows = queries.fragments(connection, trace_id, tenant, kinds=(SUPERSEDED,))
    return {row_id: set(split_ids(queries.superseded_content(content)[2])) for row_id, _, content in rows}


def _read(
    connection: sqlite3.Connection,
    read: ReadFragment,
    trace_id: bytes,
    tenant: str | None,
    *,
    kinds: tuple[int, ...] = (STEP,),
    span_ids: Sequence[bytes] | None = None,
    ids: Container[int] | None = None,
) -> list[Fragment]:
    rows = queries.fragments(connection, trace_id, tenant, kinds=kinds, span_ids=span_ids)
    return [
        Fragment(row_id, kind, read(connection, kind, content), len(content))
        for row_id, kind, content in rows
        if ids is None or row_id in ids
    ]


def surplus(connection: sqlite3.Connection, trace_id: bytes, tenant: str, limits: Limits) -> tuple[list[int], Size]:
    """Return the oldest rows of superseded steps of a trace that make room for one more, and their size."""
    total = 0
    ids: list[int] = []
    freed = Size()
    for kept, (row_id, spans, size) in enumerate(queries.superseded_sizes(connection, trace_id, tenant)):
        total += spans
        if total > limits.max_steps or kept >= _MAX_SUPERSEDED - 1:
            ids.append(row_id)
            freed = freed.plus(spans, size)
    return ids, freed


def is_revision_span(span: Span) -> bool:
    """Return whether a span carries a version of a run."""
    role = span.attributes().get(ROLE)
    return type(role) is str and role in REVISION_ROLES


def _stand_in(trace_id: bytes, span_id: bytes) -> Span:
    return Span(trace_id, span_id, b"", "", 0, 0, 0, 0, "", (), ((ROLE, ROLE_STEP),))
