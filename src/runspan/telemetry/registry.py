"""The metrics about runspan itself: the table of instruments, and the registry that collects their samples; no I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from runspan.model.timestamps import SECOND, rfc3339


class InstrumentKind(Enum):
    """How the sample of an instrument becomes its value."""

    COUNTER = "counter"
    """A monotonic sum."""
    GAUGE = "gauge"
    """A current value."""
    AGE = "age"
    """Seconds since the timestamp that is reported. Exported as a gauge that grows."""
    UNTIL = "until"
    """Seconds until the timestamp that is reported. Exported as a gauge that falls, also below 0."""


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
RECORDED: Final = Instrument("runspan.recorder.runs", _COUNTER, "{run}", "Runs that ended in the recorder.")
RECORDER_FAILED: Final = Instrument(
    "runspan.recorder.failures", _COUNTER, "{failure}", "Errors of the recorder, which never interrupt the engine."
)
WITHOUT_RUN: Final = Instrument(
    "runspan.recorder.steps.without_run",
    _COUNTER,
    "{step}",
    "Steps that were not recorded, because no run was current where they began.",
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

STARTED: Final = "runspan.started"
"""The attribute of every counter: since when it counts. So a process that starts again has series of its own, and what
one has counted is never taken for what another had counted before."""

INSTRUMENTS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))
"""All of the instruments above, in their order."""

Samples = Mapping[Instrument, float | None]
"""The values of counters and gauges, and the timestamps of AGE and UNTIL metrics in nanoseconds since 1970.

A timestamp of None means that nothing is pending: AGE metrics are 0 and UNTIL metrics are omitted.
"""


class MetricsRegistry:
    """The metrics of one process: what the sources report when the metrics are collected. Thread-safe.

    - ``clock``: returns nanoseconds since 1970; called now, and when ages are collected.
    - ``components``: the components whose counters start at 0, because a rate over a counter that starts with its first
      event misses that event. Every other metric exists from its first report on.
    """

    def __init__(self, clock: Callable[[], int], components: Iterable[str] = ()) -> None:
        self.started = rfc3339(clock())
        """The value of ``STARTED``."""
        self._clock = clock
        self._lock = threading.Lock()
        enabled = set(components)
        self._totals: dict[Instrument, float] = {
            instrument: 0
            for instrument in INSTRUMENTS
            if instrument.kind is InstrumentKind.COUNTER and instrument.component in enabled
        }
        """The counters of removed sources."""
        self._sources: list[Callable[[], Samples]] = []

    def register(self, source: Callable[[], Samples]) -> Callable[[], None]:
        """Register a source that is called on each collection, in the thread of the collector; it must be fast.

        Counters and gauges of several sources are summed, and of several timestamps the earliest counts.

        Return a function that removes the source, for a component that ends or is replaced: its counters keep their
        values, its gauges and timestamps end, and it is not referenced any more.
        """
        with self._lock:
            self._sources.append(source)

        def remove() -> None:
            with self._lock:
                self._sources.remove(source)
                for instrument, value in source().items():
                    if instrument.kind is InstrumentKind.COUNTER:
                        self._totals[instrument] = self._totals.get(instrument, 0) + (value or 0)

        return remove

    def collect(self) -> dict[Instrument, float]:
        """Return the values of all reported metrics in the order of ``INSTRUMENTS``; AGE and UNTIL in seconds."""
        with self._lock:
            samples: dict[Instrument, float | None] = dict(self._totals)
            sources = tuple(self._sources)
        for source in sources:
            for instrument, value in source().items():
                samples[instrument] = _combine(instrument, samples.get(instrument), value)
        now = self._clock()
        collected = {each: _to_value(each, samples[each], now) for each in INSTRUMENTS if each in samples}
        return {instrument: value for instrument, value in collected.items() if value is not None}


def _combine(instrument: Instrument, one: float | None, other: float | None) -> float | None:
    """Return the sum of two counters or gauges, or the earlier of two timestamps."""
    if one is None or other is None:
        return one if other is None else other
    return one + other if instrument.kind in {InstrumentKind.COUNTER, InstrumentKind.GAUGE} else min(one, other)


def _to_value(instrument: Instrument, sample: float | None, now: int) -> float | None:
    """Convert timestamps to seconds."""
    if instrument.kind is InstrumentKind.AGE:
        return 0.0 if sample is None else max(0.0, (now - sample) / SECOND)
    if instrument.kind is InstrumentKind.UNTIL:
        return None if sample is None else (sample - now) / SECOND
    return sample
