"""``Health``: the numbers as they stand, reported from any thread and read by whoever shows them; no I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from runspan.telemetry.instruments import (
    EXPORTED,
    INSTRUMENTS,
    QUEUE,
    REFUSED,
    REJECTED,
    REQUESTS,
    RETRIED,
    Instrument,
    InstrumentKind,
)

Samples = Mapping[Instrument, float | None]
"""Counts and levels as they are; of a metric of kind AGE or UNTIL its moment, nanoseconds since 1970."""

_SECOND: Final = 1_000_000_000


class MetricsRegistry:
    """What one process tells. Reporting costs a lock and an addition; nothing is computed before somebody reads.

    clock: nanoseconds since 1970, asked when ages are read.
    parts: whose counters are there from the start, at 0: a rate over a counter that is born at its first event misses
    that event. Every other metric is there from its first report on.
    All methods may be called from several threads.
    """

    def __init__(self, clock: Callable[[], int], parts: Iterable[str] = ()) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        wanted = set(parts)
        self._numbers: dict[Instrument, float | None] = {
            metric: 0 for metric in INSTRUMENTS if metric.kind is InstrumentKind.COUNTER and metric.part in wanted
        }
        self._sources: list[Callable[[], Samples]] = []

    def add(self, metric: Instrument, amount: float = 1) -> None:
        """So much more of a counter."""
        _require_kind(metric, InstrumentKind.COUNTER)
        if amount < 0:
            raise ValueError(f"{metric.name} only grows, got {amount}")
        with self._lock:
            self._numbers[metric] = (self._numbers.get(metric) or 0) + amount

    def set(self, metric: Instrument, level: float) -> None:
        """What a gauge stands at."""
        _require_kind(metric, InstrumentKind.GAUGE)
        with self._lock:
            self._numbers[metric] = level

    def set_timestamp(self, metric: Instrument, at: int | None) -> None:
        """Since when, or until when, nanoseconds since 1970.

        None: there is nothing to wait for. An age is 0 then, and a time until something is not told.
        """
        _require_kind(metric, InstrumentKind.AGE, InstrumentKind.UNTIL)
        with self._lock:
            self._numbers[metric] = at

    def register(self, source: Callable[[], Samples]) -> None:
        """Asks the source whenever somebody reads. Its counters are totals; those of several sources are added up.

        The source is called from the reader's thread and must be quick. It stays for as long as this object: a part
        that ends leaves its totals behind, or counters would fall. For parts that follow each other see ``Succession``.
        """
        with self._lock:
            self._sources.append(source)

    def collect(self) -> dict[Instrument, float]:
        """Every metric that was reported, in the order of the table; ages in seconds as of now."""
        with self._lock:
            numbers = dict(self._numbers)
            sources = tuple(self._sources)
        for source in sources:
            for metric, value in source().items():
                numbers[metric] = _combine(metric, numbers.get(metric), value)
        now = self._clock()
        told = {metric: _value(metric, numbers[metric], now) for metric in INSTRUMENTS if metric in numbers}
        return {metric: value for metric, value in told.items() if value is not None}


class CumulativeSource:
    """Parts of one kind of which there is one at a time, as one source: ``health.watch(succession.read)``.

    Counters go on from one part to the next; levels and moments are those of the part that is there. A part that was
    followed by another is not held any more. All methods may be called from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past: dict[Instrument, float] = {}
        self._part: Callable[[], Samples] | None = None

    def replace(self, part: Callable[[], Samples]) -> None:
        """The part before has ended, and this one takes its place."""
        with self._lock:
            ended = {} if self._part is None else self._part()
            for metric, total in ended.items():
                if metric.kind is InstrumentKind.COUNTER:
                    self._past[metric] = self._past.get(metric, 0) + (total or 0)
            self._part = part

    def collect(self) -> Samples:
        """The numbers of all of them."""
        with self._lock:
            told: dict[Instrument, float | None] = dict(self._past)
            for metric, value in {} if self._part is None else self._part().items():
                told[metric] = _combine(metric, told.get(metric), value)
            return told


class DeliveryCounts(Protocol):
    """What is needed of a delivery's report."""

    @property
    def runs_accepted(self) -> int: ...
    @property
    def runs_rejected(self) -> int: ...
    @property
    def runs_unknown(self) -> int: ...
    @property
    def runs_pending(self) -> int: ...
    @property
    def documents_refused(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def retries(self) -> int: ...


def delivery_samples(report: DeliveryCounts) -> Samples:
    """A delivery's report as health tells it: ``health.watch(lambda: delivered(delivery.report()))``."""
    return {
        EXPORTED: report.runs_accepted,
        REJECTED: report.runs_rejected + report.runs_unknown,
        REFUSED: report.documents_refused,
        REQUESTS: report.requests,
        RETRIED: report.retries,
        QUEUE: report.runs_pending,
    }


def _require_kind(metric: Instrument, *kinds: InstrumentKind) -> None:
    if metric.kind not in kinds:
        raise TypeError(f"{metric.name} is of kind {metric.kind.value}, not {kinds[0].value}")


def _combine(metric: Instrument, one: float | None, other: float | None) -> float | None:
    """Two reports of one metric: counts add up, and levels, as two queues do; of two moments the earlier counts."""
    if one is None or other is None:
        return one if other is None else other
    return one + other if metric.kind in {InstrumentKind.COUNTER, InstrumentKind.GAUGE} else min(one, other)


def _value(metric: Instrument, number: float | None, now: int) -> float | None:
    if metric.kind is InstrumentKind.AGE:
        return 0.0 if number is None else max(0.0, (now - number) / _SECOND)
    if metric.kind is InstrumentKind.UNTIL:
        return None if number is None else (number - now) / _SECOND
    return number
