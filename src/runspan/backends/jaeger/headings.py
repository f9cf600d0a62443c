"""What the heads in an answer tell of their runs, each head read once: lists are asked for again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from runspan.backends.jaeger.answers import Found
from runspan.carry import Missing, take_text
from runspan.decode import Heading, read_heading, read_run
from runspan.document import sort_time
from runspan.errors import NotFound, TraceIncomplete
from runspan.fields import MANIFEST, OPEN, STEP_COUNT
from runspan.ids import run_ids
from runspan.span import Span

_BOUND: Final = 2048
"""Heads remembered. One takes some kilobytes."""
_LONG: Final = 16_384
"""Bytes of attributes from which on a head is not remembered."""


class _Told(NamedTuple):
    """What one head tells. steps: the hex ids of the spans it names; None when no spans could make it whole."""

    heading: Heading
    steps: frozenset[str] | None


class Headings:
    """Reads the headings of runs, and remembers what heads told. May be used from several threads.

    What is remembered goes by everything that a heading follows from: the trace id, the span's times, and the text of
    its attributes.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, object, object, bytes], _Told] = {}

    def of(self, spans: Sequence[Found]) -> Heading | None:
        """The newest revision of a trace's run that is whole; None when there is none."""
        try:
            told = [told for found in spans if found.is_head and (told := self._told(found)) is not None]
            if not told:
                return None
            newest = max(reversed(told), key=_revision)
            if newest.steps is not None and newest.steps.issubset([found.span_id for found in spans]):
                return newest.heading
        except (TraceIncomplete, Missing):
            pass  # What is wrong with one head says nothing about older ones.
        return _proved(spans)

    def _told(self, found: Found) -> _Told | None:
        if not 0 < len(found.text) < _LONG:
            return _read(found.span())
        source = found.source
        key = (found.trace_id, source.start_time_unix_nano, source.end_time_unix_nano, found.text)
        told = self._known.get(key)
        if told is None:
            told = _read(found.span())
            if told is not None:
                if len(self._known) >= _BOUND:
                    self._known.clear()
                self._known[key] = told
        return told


def _revision(told: _Told) -> int:
    return told.heading.revision


def _read(head: Span) -> _Told | None:
    """None when the span is no head. TraceIncomplete or Missing when a piece of it is."""
    heading = read_heading(head)
    if heading is None:
        return None
    if run_ids(heading.run_id, heading.tenant).trace_id != head.trace_id:
        return _Told(heading, None)
    attributes = head.attributes()
    count = attributes.get(STEP_COUNT)
    if count is None:
        return _Told(heading, frozenset())
    manifest = (take_text(attributes, MANIFEST) or b"").decode()
    names = [manifest[start : start + len(OPEN)] for start in range(0, len(manifest), len(OPEN))]
    return _Told(heading, frozenset(names) - {OPEN} if len(names) == count else None)


def _proved(spans: Sequence[Found]) -> Heading | None:
    """The newest revision that can be proved from all spans; a list looks at the heads alone where that is enough."""
    try:
        decoded = read_run([found.span() for found in spans])
    except (NotFound, TraceIncomplete):
        return None
    run = decoded.run
    return Heading(
        run.id,
        decoded.tenant,
        decoded.revision,
        run.workflow_id,
        run.status,
        sort_time(run.envelope),
        run.summary(),
    )
