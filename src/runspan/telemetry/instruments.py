"""THE table of runspan's health metrics, from which both faces and the table in the documentation follow; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
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
class Metric:
    """name: as OpenTelemetry has it. unit: by UCUM, ``s`` or a noun in braces. about: one sentence."""

    name: str
    kind: Kind
    unit: str
    about: str

    @property
    def part(self) -> str:
        """Which part of runspan reports it."""
        return self.name.split(".")[1]

    @property
    def prometheus_name(self) -> str:
        """By the OpenTelemetry specification's rules for Prometheus: unit and ``_total`` are part of the name."""
        unit = "_seconds" if self.unit == "s" else ""
        return self.name.replace(".", "_") + unit + ("_total" if self.kind is Kind.COUNTER else "")


EXPORTED: Final = Metric("runspan.export.runs", Kind.COUNTER, "{run}", "Runs that the receiver accepted.")
REJECTED: Final = Metric("runspan.export.rejected", Kind.COUNTER, "{run}", "Runs of which the receiver rejected spans.")
REFUSED: Final = Metric(
    "runspan.export.refused", Kind.COUNTER, "{document}", "Documents that cannot be carried exactly, not sent."
)
REQUESTS: Final = Metric("runspan.export.requests", Kind.COUNTER, "{request}", "OTLP requests, each attempt counted.")
RETRIED: Final = Metric("runspan.export.retries", Kind.COUNTER, "{request}", "OTLP requests that were sent again.")
QUEUE: Final = Metric(
    "runspan.export.queue", Kind.GAUGE, "{run}", "Runs that wait to be sent, or for the receiver's answer."
)
FETCHED: Final = Metric("runspan.sync.runs", Kind.COUNTER, "{run}", "Runs fetched from the platform.")
SYNC_REQUESTS: Final = Metric(
    "runspan.sync.requests", Kind.COUNTER, "{request}", "Requests to the platform, each attempt counted."
)
SYNC_RETRIED: Final = Metric(
    "runspan.sync.retries", Kind.COUNTER, "{request}", "Requests to the platform that were sent again."
)
BACKLOG: Final = Metric(
    "runspan.sync.backlog", Kind.GAUGE, "{run}", "Runs that the platform listed and the receiver does not have yet."
)
LAG: Final = Metric(
    "runspan.sync.lag", Kind.AGE, "s", "Age of the oldest run of the backlog; 0 when there is no backlog."
)
POLLED: Final = Metric(
    "runspan.sync.poll.age", Kind.AGE, "s", "Time since the platform's list was last read to its end."
)
RETENTION_MARGIN: Final = Metric(
    "runspan.sync.retention.margin",
    Kind.UNTIL,
    "s",
    "Time until the platform's retention deletes the oldest run of the backlog.",
)
UNFINISHED: Final = Metric("runspan.runs.unfinished", Kind.GAUGE, "{run}", "Runs that have not ended.")
OLDEST_UNFINISHED: Final = Metric(
    "runspan.runs.oldest_unfinished.age",
    Kind.AGE,
    "s",
    "Time since the start of the oldest run that has not ended; 0 when all have.",
)
STUCK: Final = Metric(
    "runspan.runs.stuck",
    Kind.GAUGE,
    "{run}",
    "Runs that are pending or running and were not observed so for as long as `--stuck-after` says.",
)
RECORDED: Final = Metric("runspan.recorder.runs", Kind.COUNTER, "{run}", "Runs that the recorder saw end.")
RECORDER_FAILED: Final = Metric(
    "runspan.recorder.failures",
    Kind.COUNTER,
    "{failure}",
    "Times that the recorder could not record something and let the engine go on.",
)
WATCHED: Final = Metric(
    "runspan.watch.files", Kind.COUNTER, "{file}", "Files of the watched directory that were read to their end."
)
WATCH_WAITING: Final = Metric(
    "runspan.watch.waiting", Kind.GAUGE, "{file}", "Files that are new or changed and were not sent yet."
)
WATCH_BROKEN: Final = Metric(
    "runspan.watch.broken",
    Kind.GAUGE,
    "{file}",
    "Files that were not sent as a whole: something in them is broken, or was rejected.",
)

METRICS: Final = (
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
    WATCH_WAITING,
    WATCH_BROKEN,
)
