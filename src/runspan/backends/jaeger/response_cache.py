"""Caches of what responses of Jaeger contain, since lists are requested again and again.

``ResourceSpanCache`` decodes each object of ``resourceSpans`` once, ``RevisionCache`` each revision span.
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
from runspan.model.span import Span, run_ids

_MAX_BYTES: Final = 16 * 2**20
"""Bytes of the JSON objects in the cache. The decoded spans take about as much again."""
_MAX_OBJECT_BYTES: Final = _MAX_BYTES // 64
"""Larger objects are not cached."""
_MAX_SEEN: Final = 4096
"""How many first and last objects of responses are remembered as seen."""

_RESPONSE_START: Final = b'{"result":{"resourceSpans":['
_RESPONSE_END: Final = b"]}}"
_OBJECT_START: Final = b'{"resource":'
"""How an object of ``resourceSpans`` begins. No JSON string contains it: its quotes would have backslashes."""
_SEPARATOR: Final = b"," + _OBJECT_START


class ResourceSpanCache:
    """Decodes responses as ``find_traces`` does. May be used from several threads.

    An object is cached when all its bytes are those of an earlier one; its digest is only the key. A response is split
    into objects only when it begins or ends like an earlier one; any other is decoded at once and not cached, so lists
    that are requested once cost nothing and evict nothing.
    """

    def __init__(self) -> None:
        self.clear()

    def find(self, content: bytes) -> list[FoundSpan]:
        """Return the spans of all traces in a response, in its order. Raise MalformedResponse when it is none."""
        objects = _joined_objects(content)
        if objects is None or not self._seen_before(objects):
            return find_traces(content)
        found: list[FoundSpan] = []
        try:
            # Decoding each object shows that it is complete, and complete objects with commas between are the list.
            for part in objects.split(_SEPARATOR):
                found += self._decode(part)
        except MalformedResponse:
            return find_traces(content)  # written in another form, or really malformed
        return found

    def clear(self) -> None:
        """Empty the cache."""
        self._objects: dict[int, tuple[bytes, list[FoundSpan]]] = {}
        self._bytes = 0
        self._seen: set[int] = set()

    def _seen_before(self, objects: bytes) -> bool:
        """Return whether a response had this first or this last object before."""
        first, last = objects.find(_SEPARATOR), objects.rfind(_SEPARATOR)
        if first < 0:
            return False
        ends = {xxh3_64_intdigest(objects[:first]), xxh3_64_intdigest(objects[last:])}
        if not ends.isdisjoint(self._seen):
            return True
        if len(self._seen) >= _MAX_SEEN:
            self._seen = set()
        self._seen |= ends
        return False

    def _decode(self, part: bytes) -> list[FoundSpan]:
        """Return the spans of an object, given without ``_OBJECT_START``."""
        digest = xxh3_64_intdigest(part)
        cached = self._objects.get(digest)
        if cached is not None and cached[0] == part:
            return cached[1]
        found = read_resource(_OBJECT_START + part)
        if len(part) < _MAX_OBJECT_BYTES:
            if self._bytes > _MAX_BYTES:
                self._objects, self._bytes = {}, 0
            self._objects[digest] = part, found
            self._bytes += len(part)
        return found


def _joined_objects(content: bytes) -> bytes | None:
    """Return the list of a response without the start of its first object; None when Jaeger wrote another form."""
    content = content.rstrip()
    if not (content.startswith(_RESPONSE_START + _OBJECT_START) and content.endswith(_RESPONSE_END)):
        return None
    return content[len(_RESPONSE_START) + len(_OBJECT_START) : -len(_RESPONSE_END)]


_MAX_REVISIONS: Final = 2048
"""Revision spans in the cache. One takes some kilobytes."""
_MAX_ATTRIBUTE_BYTES: Final = 16_384
"""Revision spans with more bytes of attributes are not cached."""


class _Revision(NamedTuple):
    """The content of one revision span."""

    summary: RunSummary
    step_ids: frozenset[str] | None
    """The ids of the step spans in its manifest, hex; None when no spans could complete it."""


class RevisionCache:
    """Finds the newest revision of a trace. May be used from several threads.

    A cache key holds everything that a summary follows from: the trace id, the span's times, and its attributes.
    """

    def __init__(self) -> None:
        self._revisions: dict[tuple[str, object, object, bytes], _Revision] = {}

    def newest(self, spans: Sequence[FoundSpan]) -> RunSummary | None:
        """Return the newest complete revision of a trace's run; None when there is none."""
        try:
            candidates = [found for found in spans if found.may_be_revision_span]
            revisions = [revision for found in candidates if (revision := self._get(found)) is not None]
            if not revisions:
                return None
            newest = max(reversed(revisions), key=lambda revision: revision.summary.revision)
            if newest.step_ids is not None and newest.step_ids.issubset([found.span_id for found in spans]):
                return newest.summary
        except (TraceIncomplete, AttributeDecodeError):
            pass  # a damaged revision span says nothing about older ones
        return _verified_summary(spans)

    def _get(self, found: FoundSpan) -> _Revision | None:
        if not 0 < len(found.text) < _MAX_ATTRIBUTE_BYTES:
            return _read_revision(found.span())
        source = found.source
        key = (found.trace_id, source.start_time_unix_nano, source.end_time_unix_nano, found.text)
        revision = self._revisions.get(key)
        if revision is None:
            revision = _read_revision(found.span())
            if revision is not None:
                if len(self._revisions) >= _MAX_REVISIONS:
                    self._revisions.clear()
                self._revisions[key] = revision
        return revision


def _read_revision(span: Span) -> _Revision | None:
    """Return None for any other span. Raise TraceIncomplete or AttributeDecodeError when an attribute is missing."""
    summary = read_summary(span)
    if summary is None:
        return None
    if run_ids(summary.run_id, summary.tenant).trace_id != span.trace_id:
        return _Revision(summary, None)
    attributes = span.attributes()
    count = attributes.get(STEP_COUNT)
    if count is None:
        return _Revision(summary, frozenset())
    manifest = (decode_text(attributes, MANIFEST) or b"").decode()
    digits = len(OPEN_STEP_MARK)
    step_ids = [manifest[start : start + digits] for start in range(0, len(manifest), digits)]
    return _Revision(summary, frozenset(step_ids) - {OPEN_STEP_MARK} if len(step_ids) == count else None)


def _verified_summary(spans: Sequence[FoundSpan]) -> RunSummary | None:
    """Return the newest revision that all spans prove, where the revision spans alone are not enough."""
    try:
        verified = verify_run([found.span() for found in spans])
    except (NotFound, TraceIncomplete):
        return None
    run = verified.run
    return RunSummary(
        run.id,
        verified.tenant,
        verified.revision,
        run.workflow_id,
        run.status,
        sort_time(run.envelope),
        run.summary(),
    )
