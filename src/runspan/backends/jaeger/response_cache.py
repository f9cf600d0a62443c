"""What the heads in an answer tell of their runs, each head read once: lists are asked for again and again.

An answer of Jaeger's API v3 in pieces, one for each resource, each read once: lists repeat themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_traces, read_resource
from runspan.codec.attributes import AttributeDecodeError, decode_text
from runspan.codec.decode import RunSummary, read_summary, verify_run
from runspan.codec.fields import MANIFEST, OPEN_STEP_MARK, STEP_COUNT
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.document import sort_time
from runspan.model.ids import run_ids
from runspan.model.span import Span

_MAX_PIECE_BYTES: Final = 16 * 2**20
"""Bytes of pieces remembered. What was read of them takes about as much again."""
_LONG_PIECE: Final = _MAX_PIECE_BYTES // 64
"""Bytes from which on a piece is not remembered."""
_SEEN: Final = 4096
"""How many pieces at the ends of answers are known to have been seen."""

_BEGIN: Final = b'{"result":{"resourceSpans":['
_END: Final = b"]}}"
_PIECE: Final = b'{"resource":'
"""How a piece begins. In JSON no string holds it, since the quotes in it would have backslashes before them."""
_NEXT: Final = b"," + _PIECE


class ResourceSpanCache:
    """Reads answers as ``find_traces`` does, and remembers what pieces told. May be used from several threads.

    A piece is known when all its bytes are those of an earlier one; its digest only says where to look. An answer that
    neither begins nor ends like an earlier one is read whole and not kept: lists that are asked for once cost nothing
    and drive nothing out.
    """

    def __init__(self) -> None:
        self.clear()

    def find(self, content: bytes) -> list[FoundSpan]:
        """The spans of all traces in an answer, in its order. Unreadable when it is none."""
        inner = _inner(content)
        if inner is None or not self._familiar(inner):
            return find_traces(content)
        found: list[FoundSpan] = []
        try:
            # That each object is whole is seen when it is read: objects with commas between them are the list.
            for piece in inner.split(_NEXT):
                found += self._read(piece)
        except MalformedResponse:
            return find_traces(content)  # Not cut as Jaeger cuts it, or really unreadable.
        return found

    def clear(self) -> None:
        """Forgets everything."""
        self._known: dict[int, tuple[bytes, list[FoundSpan]]] = {}
        self._bytes = 0
        self._seen: set[int] = set()

    def _familiar(self, inner: bytes) -> bool:
        """Whether the first or the last piece was seen before, in such a place."""
        first, last = inner.find(_NEXT), inner.rfind(_NEXT)
        if first < 0:
            return False
        ends = {xxh3_64_intdigest(inner[:first]), xxh3_64_intdigest(inner[last:])}
        if not ends.isdisjoint(self._seen):
            return True
        if len(self._seen) >= _SEEN:
            self._seen = set()
        self._seen |= ends
        return False

    def _read(self, piece: bytes) -> list[FoundSpan]:
        """piece: without its beginning."""
        digest = xxh3_64_intdigest(piece)
        known = self._known.get(digest)
        if known is not None and known[0] == piece:
            return known[1]
        found = read_resource(_PIECE + piece)
        if len(piece) < _LONG_PIECE:
            if self._bytes > _MAX_PIECE_BYTES:
                self._known, self._bytes = {}, 0
            self._known[digest] = piece, found
            self._bytes += len(piece)
        return found


def _inner(content: bytes) -> bytes | None:
    """The list of the answer without the beginning of its first piece; None when Jaeger's gateway writes otherwise."""
    content = content.rstrip()
    if not (content.startswith(_BEGIN + _PIECE) and content.endswith(_END)):
        return None
    return content[len(_BEGIN) + len(_PIECE) : -len(_END)]


_MAX_REVISIONS: Final = 2048
"""Heads remembered. One takes some kilobytes."""
_LONG_TEXT: Final = 16_384
"""Bytes of attributes from which on a head is not remembered."""


class _Told(NamedTuple):
    """What one head tells. steps: the hex ids of the spans it names; None when no spans could make it whole."""

    heading: RunSummary
    steps: frozenset[str] | None


class RevisionCache:
    """Reads the headings of runs, and remembers what heads told. May be used from several threads.

    What is remembered goes by everything that a heading follows from: the trace id, the span's times, and the text of
    its attributes.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, object, object, bytes], _Told] = {}

    def get(self, spans: Sequence[FoundSpan]) -> RunSummary | None:
        """The newest revision of a trace's run that is whole; None when there is none."""
        try:
            told = [told for found in spans if found.is_head and (told := self._told(found)) is not None]
            if not told:
                return None
            newest = max(reversed(told), key=_revision)
            if newest.steps is not None and newest.steps.issubset([found.span_id for found in spans]):
                return newest.heading
        except (TraceIncomplete, AttributeDecodeError):
            pass  # What is wrong with one head says nothing about older ones.
        return _proved(spans)

    def _told(self, found: FoundSpan) -> _Told | None:
        if not 0 < len(found.text) < _LONG_TEXT:
            return _read(found.span())
        source = found.source
        key = (found.trace_id, source.start_time_unix_nano, source.end_time_unix_nano, found.text)
        told = self._known.get(key)
        if told is None:
            told = _read(found.span())
            if told is not None:
                if len(self._known) >= _MAX_REVISIONS:
                    self._known.clear()
                self._known[key] = told
        return told


def _revision(told: _Told) -> int:
    return told.heading.revision


def _read(head: Span) -> _Told | None:
    """None when the span is no head. TraceIncomplete or Missing when a piece of it is."""
    heading = read_summary(head)
    if heading is None:
        return None
    if run_ids(heading.run_id, heading.tenant).trace_id != head.trace_id:
        return _Told(heading, None)
    attributes = head.attributes()
    count = attributes.get(STEP_COUNT)
    if count is None:
        return _Told(heading, frozenset())
    manifest = (decode_text(attributes, MANIFEST) or b"").decode()
    names = [manifest[start : start + len(OPEN_STEP_MARK)] for start in range(0, len(manifest), len(OPEN_STEP_MARK))]
    return _Told(heading, frozenset(names) - {OPEN_STEP_MARK} if len(names) == count else None)


def _proved(spans: Sequence[FoundSpan]) -> RunSummary | None:
    """The newest revision that can be proved from all spans; a list looks at the heads alone where that is enough."""
    try:
        decoded = verify_run([found.span() for found in spans])
    except (NotFound, TraceIncomplete):
        return None
    run = decoded.run
    return RunSummary(
        run.id,
        decoded.tenant,
        decoded.revision,
        run.workflow_id,
        run.status,
        sort_time(run.envelope),
        run.summary(),
    )
