"""Where the spans of a run's steps lie and which of them contain others, for people who read traces; no I/O, no clock.

``decode`` never reads any of it: documents are rebuilt from attributes and events. Steps without times get a position
after the steps before them, and rounds of a loop get the loop's step as their parent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from runspan.model.document import Step, by_content

LOOP: Final = "loop"
"""The type of the steps that contain their rounds."""
_MAX_DEPTH: Final = 64
"""Loops that are tried as the parent of a step, innermost first: a document of overlapping loops costs linear time."""
_FOREVER: Final = 1 << 64


class Interval(NamedTuple):
    """The times of one step in nanoseconds since 1970; None for a time that is absent or unusable."""

    start: int | None
    end: int | None


def positions(intervals: Sequence[Interval], first: int, last: int | None) -> dict[int, int]:
    """Return the positions of the steps without times, by index: the latest end of the steps before them.

    Each lies at least a nanosecond before the end of the run, since its span is as long as that. ``first`` and ``last``
    are the bounds of the run in nanoseconds since 1970; ``last`` is None if it is unknown.
    """
    found: dict[int, int] = {}
    latest = first
    for index, interval in enumerate(intervals):
        if interval.start is None and interval.end is None:
            found[index] = max(first, latest if last is None else min(latest, last - 1))
        else:
            latest = max(latest, interval.start or 0, interval.end or 0)
    return found


def enclosing_loops(
    steps: Sequence[Step], intervals: Sequence[Interval], position_of: dict[int, int], ended: Sequence[bool]
) -> dict[int, int]:
    """Return the index of the innermost loop around each step that is a round, by the index of the step.

    A round is a step whose id occurs again in the document and whose time lies inside a step of type ``loop``. Inside a
    loop that has not ended, every step counts as a round, since its id may still occur again.
    """
    ids = [by_content(step.id) for step in steps]
    counts = Counter(ids)
    spans = []
    for index, (step, interval) in enumerate(zip(steps, intervals, strict=True)):
        start = interval.start if interval.start is not None else interval.end
        start = position_of[index] if start is None else start
        end = interval.end if interval.end is not None and interval.end >= start else start
        is_loop = step.type == LOOP and interval.start is not None
        if is_loop and not ended[index]:
            end = _FOREVER
        spans.append((start, -end, index, is_loop))
    found: dict[int, int] = {}
    loops: list[tuple[int, int]] = []
    for start, negated_end, index, is_loop in sorted(spans):
        end = -negated_end
        while loops and loops[-1][0] < start:
            loops.pop()
        for loop_end, loop in islice(reversed(loops), _MAX_DEPTH):
            if loop_end >= end and (counts[ids[index]] > 1 or not ended[loop]):
                found[index] = loop
                break
        if is_loop:
            loops.append((end, index))
    return found


def parents_first(parents: Mapping[int, int]) -> list[int]:
    """Return the keys in an order in which each comes after its parent, equals in ascending order."""
    depths: dict[int, int] = {}
    for index in parents:
        path = []
        current = index
        while current in parents and current not in depths:
            path.append(current)
            current = parents[current]
        depth = depths.get(current, 0)
        for child in reversed(path):
            depth += 1
            depths[child] = depth
    return sorted(parents, key=lambda index: (depths[index], index))
