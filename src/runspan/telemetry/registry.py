"""The metrics about runspan itself: the table of instruments, and the registry that collects their samples; no I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol


class InstrumentKind(Enum):
    """How the value of an instrument is reported to ``MetricsRegistry`` and collected."""

    COUNTER = "counter"
    """A monotonic sum, reported with ``MetricsRegistry.add``."""
    GAUGE = "gauge"
    """A current value, reported with ``MetricsRegistry.set``."""
    AGE = "age"
    """Seconds since a timestamp, reported with ``MetricsRegistry.set_timestamp``. Exported as a gauge that grows."""
    UNTIL = "until"
    """Seconds until a timestamp, reported with ``MetricsRegistry.set_timestamp``. Exported as a gauge that falls, also
    below 0."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric."""

    name: str
    """The name in OpenTelemetry."""
    kind: InstrumentKind
    unit: str
    """By UCUM: ``s``, or a noun in braces."""
    description: str
    """One sentence."""

    @property
    def component(self) -> str:
        """The component of runspan that reports the metric."""
        return self.name.split(".")[1]

    @property
    def prometheus_name(self) -> str:
        """The name by OpenTelemetry's rules for Prometheus, with unit and ``_total``."""
        unit = "_seconds" if self.unit == "s" else ""
        return self.name.replace(".", "_") + unit + ("_total" if self.kind is InstrumentKind.COUNTER else "")


_COUNTER, _GAUGE = InstrumentKind.COUNTER, InstrumentKind.GAUGE
_AGE, _UNTIL = InstrumentKind.AGE, InstrumentKind.UNTIL

EXPORTED: Final = Instrument("runspan.export.runs", _COUNTER, "{run}", "Runs that the receiver accepted.")
REJECTED: Final = Instrument("runspan.export.rejected", _COUNTER, "{run}", "Runs of which the receiver rejected spans.")
REFUSED: Final = Instrument(
    "runspan.export.refused",
    _COUNTER,
    "{document}",
    "Documents that were not sent, because they cannot be carried exactly.",
)
REQUESTS: Final = Instrument("runspan.export.requests", _COUNTER, "{request}", "OTLP requests, each attempt counted.")
RETRIED: Final = Instrument("runspan.export.retries", _COUNTER, "{request}", "OTLP requests that were retried.")
QUEUE: Final = Instrument(
    "runspan.export.queue", _GAUGE, "{run}", "Runs that wait to be sent, or for the receiver's response."
)
FETCHED: Final = Instrument("runspan.sync.runs", _COUNTER, "{run}", "Runs fetched from the platform.")
SYNC_REQUESTS: Final = Instrument(
    "runspan.sync.requests", _COUNTER, "{request}", "Requests to the platform, each attempt counted."
)
SYNC_RETRIED: Final = Instrument(
    "runspan.sync.retries", _COUNTER, "{request}", "Requests to the platform that were retried."
)
BACKLOG: Final = Instrument(
    "runspan.sync.backlog", _GAUGE, "{run}", "Runs that the platform listed and the receiver has not acknowledged yet."
)
LAG: Final = Instrument(
    "runspan.sync.lag", _AGE, "s", "Age of the oldest run of the backlog; 0 if there is no backlog."
)
POLLED: Final = Instrument(
    "runspan.sync.poll.age", _AGE, "s", "Time since the platform's list was last read to its end."
)
RETENTION_MARGIN: Final = Instrument(
    "runspan.sync.retention.margin",
    _UNTIL,
    "s",
    "Time until the platform's retention deletes the oldest run of the backlog.",
)
UNFINISHED: Final = Instrument("runspan.runs.unfinished", _GAUGE, "{run}", "Runs that have not ended.")
OLDEST_UNFINISHED: Final = Instrument(
    "runspan.runs.oldest_unfinished.age",
    _AGE,
    "s",
    "Time since the start of the oldest run that has not ended; 0 if all have ended.",
)
STUCK: Final = Instrument(
    "runspan.runs.stuck",
    _GAUGE,
    "{run}",
    "Pending and running runs whose next heartbeat is overdue by more than `--stuck-after`.",
)
RECORDED: Final = Instrument("runspan.recorder.runs", _COUNTER, "{run}", "Runs that ended in the recorder.")
RECORDER_FAILED: Final = Instrument(
    "runspan.recorder.failures", _COUNTER, "{failure}", "Errors of the recorder, which never interrupt the engine."
)
WATCHED: Final = Instrument(
    "runspan.watch.files", _COUNTER, "{file}", "Files of the watched directory that were read to their end."
)
WATCH_PENDING: Final = Instrument(
    "runspan.watch.pending", _GAUGE, "{file}", "New and changed files that were not sent yet."
)
WATCH_FAILED: Final = Instrument(
    "runspan.watch.failed",
    _GAUGE,
    "{file}",
    "Files that were not sent completely, because a document is invalid or was rejected.",
)

INSTRUMENTS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))
"""All of the instruments above, in their order."""

Samples = Mapping[Instrument, float | None]
"""The values of counters and gauges, and the timestamps of AGE and UNTIL metrics in nanoseconds since 1970."""

_SECOND: Final = 1_000_000_000


class MetricsRegistry:
    """The metric values of one process. Thread-safe.

    - ``clock``: returns nanoseconds since 1970; called when ages are collected.
    - ``components``: the components whose counters start at 0, because a rate over a counter that starts with its first
      event misses that event. Every other metric exists from its first report on.
    """

    def __init__(self, clock: Callable[[], int], components: Iterable[str] = ()) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        enabled = set(components)
        self._values: dict[Instrument, float | None] = {
            instrument: 0
            for instrument in INSTRUMENTS
            if instrument.kind is InstrumentKind.COUNTER and instrument.component in enabled
        }
        self._sources: list[Callable[[], Samples]] = []

    def add(self, instrument: Instrument, amount: float = 1) -> None:
        """Add a non-negative amount to a counter."""
        _require_kind(instrument, InstrumentKind.COUNTER)
        if amount < 0:
            raise ValueError(f"the amount for {instrument.name} must not be negative, got {amount}")
        with self._lock:
            self._values[instrument] = (self._values.get(instrument) or 0) + amount

    def set(self, instrument: Instrument, value: float) -> None:
        """Set the value of a gauge."""
        _require_kind(instrument, InstrumentKind.GAUGE)
        with self._lock:
            self._values[instrument] = value

    def set_timestamp(self, instrument: Instrument, timestamp: int | None) -> None:
        """Set the timestamp of an AGE or UNTIL metric, in nanoseconds since 1970.

        None means that nothing is pending: AGE metrics are 0 and UNTIL metrics are omitted.
        """
        _require_kind(instrument, InstrumentKind.AGE, InstrumentKind.UNTIL)
        with self._lock:
            self._values[instrument] = timestamp

    def register(self, source: Callable[[], Samples]) -> None:
        """Register a source that is called on each collection. Counters and gauges of several sources are summed.

        The source is called in the thread of the collector and must be fast. It cannot be removed, because its counters
        would decrease. For components that replace each other see ``CumulativeSource``.
        """
        with self._lock:
            self._sources.append(source)

    def collect(self) -> dict[Instrument, float]:
        """Return the values of all reported metrics in the order of ``INSTRUMENTS``; AGE and UNTIL in seconds."""
        with self._lock:
            samples = dict(self._values)
            sources = tuple(self._sources)
        for source in sources:
            for instrument, value in source().items():
                samples[instrument] = _combine(instrument, samples.get(instrument), value)
        now = self._clock()
        collected = {each: _to_value(each, samples[each], now) for each in INSTRUMENTS if each in samples}
        return {instrument: value for instrument, value in collected.items() if value is not None}


class CumulativeSource:
    """A source whose component is replaced from time to time: ``registry.register(cumulative.collect)``. Thread-safe.

    Counters continue from one component to the next. Gauges and timestamps are those of the current component. A
    replaced component is not referenced any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[Instrument, float] = {}
        """The counters of replaced components."""
        self._source: Callable[[], Samples] = dict

    def replace(self, source: Callable[[], Samples]) -> None:
        """Add the counters of the current component to the totals, and collect from ``source`` from now on."""
        with self._lock:
            for instrument, total in self._source().items():
                if instrument.kind is InstrumentKind.COUNTER:
                    self._totals[instrument] = self._totals.get(instrument, 0) + (total or 0)
            self._source = source

    def collect(self) -> Samples:
        """Return the samples of the current component, with the totals of its predecessors added to counters."""
        with self._lock:
            samples: dict[Instrument, float | None] = dict(self._totals)
            for instrument, value in self._source().items():
                samples[instrument] = _combine(instrument, samples.get(instrument), value)
            return samples


class ExportCounts(Protocol):
    """The counts of an exporter's report that become metrics."""

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


def export_samples(report: ExportCounts) -> Samples:
    """Return the samples of a report: ``registry.register(lambda: export_samples(exporter.report()))``."""
    return {
        EXPORTED: report.runs_accepted,
        REJECTED: report.runs_rejected + report.runs_unknown,
        REFUSED: report.documents_refused,
        REQUESTS: report.requests,
        RETRIED: report.retries,
        QUEUE: report.runs_pending,
    }


def _require_kind(instrument: Instrument, *kinds: InstrumentKind) -> None:
    if instrument.kind not in kinds:
        raise TypeError(f"{instrument.name} is of kind {instrument.kind.value}, not {kinds[0].value}")


def _combine(instrument: Instrument, one: float | None, other: float | None) -> float | None:
    """Return the sum of two counters or gauges, or the earlier of two timestamps."""
    if one is None or other is None:
        return one if other is None else other
    return one + other if instrument.kind in {InstrumentKind.COUNTER, InstrumentKind.GAUGE} else min(one, other)


def _to_value(instrument: Instrument, sample: float | None, now: int) -> float | None:
    """Convert timestamps to seconds."""
    if instrument.kind is InstrumentKind.AGE:
        return 0.0 if sample is None else max(0.0, (now - sample) / _SECOND)
    if instrument.kind is InstrumentKind.UNTIL:
        return None if sample is None else (sample - now) / _SECOND
    return sample
