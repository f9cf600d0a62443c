"""The table of runspan's metrics, used by both exporters and the documentation; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


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
    "Pending and running runs that were not observed for longer than `--stuck-after`.",
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

INSTRUMENTS: Final = (
    EXPORTED,
    REJECTED,
    REFUSED,
    REQUESTS,
    RETRIED,
    QUEUE,
    FETCHED,
    SYNC_REQUESTS,
    SYNC_RETRIED,
    BACKLOG,
    LAG,
    POLLED,
    RETENTION_MARGIN,
    UNFINISHED,
    OLDEST_UNFINISHED,
    STUCK,
    RECORDED,
    RECORDER_FAILED,
    WATCHED,
    WATCH_PENDING,
    WATCH_FAILED,
)
