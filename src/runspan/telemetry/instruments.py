"""THE table of runspan's health metrics, from which both faces and the table in the documentation follow; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class InstrumentKind(Enum):
    """How a metric is reported to ``Health``, and read."""

    COUNTER = "counter"
    """Only grows: ``Health.add``."""
    GAUGE = "gauge"
    """A level: ``Health.set``."""
    AGE = "age"
    """Seconds since a moment: ``Health.moment``. Told as a gauge that grows although nobody reports."""
    UNTIL = "until"
    """Seconds until a moment: ``Health.moment``. Told as a gauge that falls, below 0 when the moment is past."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """name: as OpenTelemetry has it. unit: by UCUM, ``s`` or a noun in braces. about: one sentence."""

    name: str
    kind: InstrumentKind
    unit: str
    description: str

    @property
    def component(self) -> str:
        """Which part of runspan reports it."""
        return self.name.split(".")[1]

    @property
    def prometheus_name(self) -> str:
        """By the OpenTelemetry specification's rules for Prometheus: unit and ``_total`` are part of the name."""
        unit = "_seconds" if self.unit == "s" else ""
        return self.name.replace(".", "_") + unit + ("_total" if self.kind is InstrumentKind.COUNTER else "")


EXPORTED: Final = Instrument("runspan.export.runs", InstrumentKind.COUNTER, "{run}", "Runs that the receiver accepted.")
REJECTED: Final = Instrument(
    "runspan.export.rejected", InstrumentKind.COUNTER, "{run}", "Runs of which the receiver rejected spans."
)
REFUSED: Final = Instrument(
    "runspan.export.refused",
    InstrumentKind.COUNTER,
    "{document}",
    "Documents that cannot be carried exactly, not sent.",
)
REQUESTS: Final = Instrument(
    "runspan.export.requests", InstrumentKind.COUNTER, "{request}", "OTLP requests, each attempt counted."
)
RETRIED: Final = Instrument(
    "runspan.export.retries", InstrumentKind.COUNTER, "{request}", "OTLP requests that were sent again."
)
QUEUE: Final = Instrument(
    "runspan.export.queue", InstrumentKind.GAUGE, "{run}", "Runs that wait to be sent, or for the receiver's answer."
)
FETCHED: Final = Instrument("runspan.sync.runs", InstrumentKind.COUNTER, "{run}", "Runs fetched from the platform.")
SYNC_REQUESTS: Final = Instrument(
    "runspan.sync.requests", InstrumentKind.COUNTER, "{request}", "Requests to the platform, each attempt counted."
)
SYNC_RETRIED: Final = Instrument(
    "runspan.sync.retries", InstrumentKind.COUNTER, "{request}", "Requests to the platform that were sent again."
)
BACKLOG: Final = Instrument(
    "runspan.sync.backlog",
    InstrumentKind.GAUGE,
    "{run}",
    "Runs that the platform listed and the receiver does not have yet.",
)
LAG: Final = Instrument(
    "runspan.sync.lag", InstrumentKind.AGE, "s", "Age of the oldest run of the backlog; 0 when there is no backlog."
)
POLLED: Final = Instrument(
    "runspan.sync.poll.age", InstrumentKind.AGE, "s", "Time since the platform's list was last read to its end."
)
RETENTION_MARGIN: Final = Instrument(
    "runspan.sync.retention.margin",
    InstrumentKind.UNTIL,
    "s",
    "Time until the platform's retention deletes the oldest run of the backlog.",
)
UNFINISHED: Final = Instrument("runspan.runs.unfinished", InstrumentKind.GAUGE, "{run}", "Runs that have not ended.")
OLDEST_UNFINISHED: Final = Instrument(
    "runspan.runs.oldest_unfinished.age",
    InstrumentKind.AGE,
    "s",
    "Time since the start of the oldest run that has not ended; 0 when all have.",
)
STUCK: Final = Instrument(
    "runspan.runs.stuck",
    InstrumentKind.GAUGE,
    "{run}",
    "Runs that are pending or running and were not observed so for as long as `--stuck-after` says.",
)
RECORDED: Final = Instrument(
    "runspan.recorder.runs", InstrumentKind.COUNTER, "{run}", "Runs that the recorder saw end."
)
RECORDER_FAILED: Final = Instrument(
    "runspan.recorder.failures",
    InstrumentKind.COUNTER,
    "{failure}",
    "Times that the recorder could not record something and let the engine go on.",
)
WATCHED: Final = Instrument(
    "runspan.watch.files",
    InstrumentKind.COUNTER,
    "{file}",
    "Files of the watched directory that were read to their end.",
)
WATCH_PENDING: Final = Instrument(
    "runspan.watch.waiting", InstrumentKind.GAUGE, "{file}", "Files that are new or changed and were not sent yet."
)
WATCH_FAILED: Final = Instrument(
    "runspan.watch.broken",
    InstrumentKind.GAUGE,
    "{file}",
    "Files that were not sent as a whole: something in them is broken, or was rejected.",
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
