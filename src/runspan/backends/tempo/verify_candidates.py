"""Whether a trace that a search found is a run of the list, and which item it is.

A head tells the item, but not that the run's steps are all there, nor always that no newer head lies in a fragment
that the search did not see. Where the search answer does not prove both, the trace itself is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Final

from runspan.backends.tempo.responses import SPAN_ID_DIGITS, Candidate
from runspan.codec.decode import RunSummary, VerifiedRun, read_summary
from runspan.codec.fields import DIGEST, MANIFEST, MAX_ATTRIBUTE_BYTES, ROOT_REVISION, STEP_COUNT
from runspan.contracts import RunQuery
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.document import sort_time, str_or_none
from runspan.model.ids import run_ids
from runspan.model.span import Span

TRUSTED_BYTES: Final = 200
"""A longer text in a search answer may have been cut by the server, and is believed only with its digest."""
_REPLACEMENT: Final = "\ufffd"
"""What JSON shows of a character that was cut."""
_REMEMBERED: Final = 100_000

Key = tuple[int, str]
"""A run's place: sort time and run id, both descending in a list."""


@dataclass(frozen=True, slots=True)
class ListItem:
    """One run of the list. note: what is missing of it, empty when nothing is."""

    key: Key
    summary: bytes
    note: str = ""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A trace that is not in the list. note: why that may be wrong, empty when it is certain."""

    note: str = ""


Decision = ListItem | Excluded


class VerifiedCache:
    """Revisions that were once read whole: what was proved stays proved. The oldest are forgotten."""

    def __init__(self, bound: int = _REMEMBERED) -> None:
        self._known: OrderedDict[tuple[bytes, int, str], None] = OrderedDict()
        self._bound = bound
        self._lock = Lock()

    def add(self, trace_id: bytes, revision: int, digest: str) -> None:
        with self._lock:
            self._known[trace_id, revision, digest] = None
            self._known.move_to_end((trace_id, revision, digest))
            if len(self._known) > self._bound:
                self._known.popitem(last=False)

    def __contains__(self, key: tuple[bytes, int, str]) -> bool:
        return key in self._known


class CandidateVerifier:
    """Judges the candidates of one query. read: the run of a trace, as ``codec.decode.read_run`` proves it."""

    def __init__(
        self, query: RunQuery, read: Callable[[bytes], VerifiedRun], proofs: VerifiedCache, pool: ThreadPoolExecutor
    ) -> None:
        self._query = query
        self._read = read
        self._proofs = proofs
        self._pool = pool
        self._filtered = query.workflow_id is not None or bool(query.statuses)

    def from_search(self, candidate: Candidate, *, all_seen: bool, all_newer_seen: bool) -> tuple[Key, Decision | None]:
        """The place of a candidate, and its verdict when the search answer alone proves one.

        all_seen: whether every head of a run that may be in the list meets the search's conditions, or a newer one
        does. all_newer_seen: whether the search reached up to the latest time.
        """
        newest = candidate.newest
        try:
            heading = read_summary(newest)
        except TraceIncomplete:
            heading = None
        if heading is None or _is_pieced(newest) or not _is_own(heading, candidate.trace_id):
            return (newest.start, ""), None
        key = (heading.time, heading.run_id)
        if heading.tenant != self._query.tenant:
            return key, Excluded()
        is_newest = all_seen and (heading.revision >= ROOT_REVISION or (all_newer_seen and not self._filtered))
        if is_newest and not self._matches(heading):
            return key, Excluded() if _is_trusted(newest) else None
        if is_newest and _is_trusted(newest) and self._is_proved(candidate, heading):
            return key, ListItem(key, heading.summary)
        return key, None

    def read_all(self, candidates: Sequence[Candidate]) -> list[Decision]:
        """The verdicts on traces that are read, several at a time."""
        if len(candidates) < 2:
            return [self._read_one(candidate) for candidate in candidates]
        return list(self._pool.map(self._read_one, candidates))

    def _read_one(self, candidate: Candidate) -> Decision:
        try:
            decoded = self._read(candidate.trace_id)
        except NotFound:
            return Excluded()
        except TraceIncomplete as error:
            return Excluded(f"trace {candidate.trace_id.hex()} is not listed: {'; '.join(error.missing[:3]) or error}")
        run = decoded.run
        envelope = run.envelope
        self._proofs.add(candidate.trace_id, decoded.revision, sha256(run.text).hexdigest())
        workflow, status = str_or_none(envelope.workflow_id), str_or_none(envelope.status)
        if decoded.tenant != self._query.tenant or not self._query.matches(workflow, status, decoded.revision):
            return Excluded()
        note = f"run {run.id} is listed as of an older revision: {decoded.incomplete[0]}" if decoded.incomplete else ""
        return ListItem((sort_time(envelope), run.id), run.summary(), note)

    def _matches(self, heading: RunSummary) -> bool:
        query = self._query
        return heading.tenant == query.tenant and query.matches(heading.workflow_id, heading.status, heading.revision)

    def _is_proved(self, candidate: Candidate, heading: RunSummary) -> bool:
        attributes = candidate.newest.attributes()
        digest = attributes.get(DIGEST)
        if type(digest) is not str:
            return False
        key = (candidate.trace_id, heading.revision, digest)
        if key in self._proofs:
            return True
        if len(candidate.heads) == 1 and _names(candidate.newest) <= candidate.steps:
            self._proofs.add(*key)
            return True
        return False


_UNKNOWN: Final = frozenset({""})
"""A name that no step span has."""


def _names(head: Span) -> frozenset[str]:
    """The step spans that the head names, in hex: an id is a digest of the step, so its span is there in this version.

    An open step is named by no id. Neither is any step of a manifest that was cut, or goes on in further attributes.
    """
    attributes = head.attributes()
    manifest, count = attributes.get(MANIFEST, ""), attributes.get(STEP_COUNT, 0)
    if type(manifest) is not str or type(count) is not int or len(manifest) != count * SPAN_ID_DIGITS:
        return _UNKNOWN
    return frozenset(manifest[start : start + SPAN_ID_DIGITS] for start in range(0, len(manifest), SPAN_ID_DIGITS))


def _is_own(heading: RunSummary, trace_id: bytes) -> bool:
    """Whether run id and tenant are whole: the trace id follows from them."""
    try:
        return run_ids(heading.run_id, heading.tenant).trace_id == trace_id
    except UnicodeEncodeError:
        return False


def _is_trusted(head: Span) -> bool:
    return all(
        type(value) is not str or (len(value.encode()) <= TRUSTED_BYTES and _REPLACEMENT not in value)
        for key, value in head.attributes().items()
        if key != MANIFEST
    )


def _is_pieced(head: Span) -> bool:
    """Whether a text is so long that further pieces of it may stand in attributes that were not asked for."""
    return any(
        type(value) is str and len(value) > MAX_ATTRIBUTE_BYTES // 4 - 4
        for key, value in head.attributes().items()
        if key != MANIFEST
    )
