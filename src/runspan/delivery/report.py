"""``ExportReport``: the counts of an export and the names of what failed, for people and for programs; no I/O.

Every submitted run is in exactly one count: accepted, rejected, not sent or pending.
"""

from __future__ import annotations

import re
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from itertools import chain
from typing import Any, Self

from runspan.contracts import Rejection
from runspan.delivery.dead_letters import DeadLetters
from runspan.delivery.transport import RunSpans
from runspan.errors import DocumentError
from runspan.http.urls import sanitize_message
from runspan.telemetry import Samples
from runspan.telemetry.registry import EXPORTED, QUEUE, REFUSED, REJECTED, REQUESTS, RETRIED

MAX_NAMED = 100
"""How many rejections of a kind are kept by name; all are counted."""

_NAMED_IN_ONE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """What the reports of an export and of a sync have in common."""

    documents_kept: int = 0
    """Documents that were not accepted and are in the dead letter file ``kept_in``."""

    documents_lost: int = 0
    """Documents that should be there and are not, because of ``keeping_failed``."""

    kept_in: str = ""
    keeping_failed: str = ""

    @property
    def complete(self) -> bool:
        """Whether the receiver has everything."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"complete": self.complete, **asdict(self)}

    def with_dead_letters(self, dead_letters: DeadLetters) -> Self:
        """Return the report with the counts of a closed dead letter file."""
        return replace(
            self,
            documents_kept=dead_letters.kept,
            documents_lost=dead_letters.lost,
            kept_in=dead_letters.path if dead_letters.kept or dead_letters.lost else "",
            keeping_failed=dead_letters.write_error,
        )

    def kept_lines(self) -> list[str]:
        """Return the lines for people about the dead letters."""
        lines = []
        path_text = sanitize_message(self.kept_in)
        if self.documents_kept:
            again = sanitize_message(f"runspan export {shlex.quote(self.kept_in)}")
            lines.append(f"{plural(self.documents_kept, 'document')} kept in {path_text}; to send: {again}")
        if self.documents_lost:
            lost = plural(self.documents_lost, "document")
            lines.append(f"{lost} NOT kept: {path_text} could not be written: {self.keeping_failed}")
        return lines


@dataclass(frozen=True, slots=True)
class ExportReport(DeliveryReport):
    """The result of an export so far."""

    runs_accepted: int = 0
    runs_rejected: int = 0
    runs_not_sent: int = 0
    runs_pending: int = 0
    """Runs without a response yet, or, at the end, whose response was not waited for."""

    spans_accepted: int = 0
    spans_rejected: int = 0
    spans_not_sent: int = 0
    spans_pending: int = 0
    documents_refused: int = 0
    """Documents that are not sent because they cannot be carried exactly."""

    requests: int = 0
    """Attempts, including ``retries``."""

    retries: int = 0
    bytes: int = 0
    """Of all request bodies, before compression."""

    rejections: tuple[Rejection, ...] = ()
    """The first ``MAX_NAMED`` rejected runs."""

    refusals: tuple[Rejection, ...] = ()
    """The first ``MAX_NAMED`` refused documents."""

    links_skipped: int = 0
    """Symbolic links out of a folder, which were not followed."""

    skipped: tuple[str, ...] = ()
    """The paths of the first ``MAX_NAMED`` of them."""

    warnings: tuple[str, ...] = ()
    stopped: str = ""
    """Why sending ended early, or ""."""

    @property
    def complete(self) -> bool:
        """True if every document was carried and every span accepted."""
        missing = self.runs_rejected + self.runs_not_sent + self.runs_pending
        return not (missing or self.documents_refused or self.stopped)

    def summary_lines(self) -> list[str]:
        """Return the report for people; the first line is always there."""
        accepted = f"{plural(self.runs_accepted, 'run')} accepted, {plural(self.spans_accepted, 'span')}"
        lines = [f"{accepted}, {plural(self.requests, 'request')}, {_size(self.bytes)}"]
        if self.retries:
            lines.append(f"{plural(self.retries, 'request')} sent again")
        if self.runs_rejected:
            lines.append(f"{plural(self.runs_rejected, 'run')} rejected, {plural(self.spans_rejected, 'span')}:")
            lines += _named(self.rejections, self.runs_rejected)
        if self.documents_refused:
            lines.append(f"{plural(self.documents_refused, 'document')} refused, not sent:")
            lines += _named(self.refusals, self.documents_refused)
        if self.links_skipped:
            links = plural(self.links_skipped, "symbolic link")
            lines.append(
                f"{links} out of the folder not followed, for lack of --follow-symlinks: {_some([*self.skipped])}"
            )
        lines += [f"warning from the receiver: {warning}" for warning in self.warnings]
        if self.stopped:
            # The dead letters hold the rest of the input, unless the export was interrupted.
            unread = not self.kept_in or self.stopped == "interrupted"
            lines.append(f"stopped: {self.stopped}" + "; the input may not have been read to its end" * unread)
        if self.runs_not_sent:
            lines.append(f"{plural(self.runs_not_sent, 'run')} not sent, {plural(self.spans_not_sent, 'span')}")
        if self.runs_pending:
            lines.append(f"{plural(self.runs_pending, 'run')} without a response, {plural(self.spans_pending, 'span')}")
        return lines + self.kept_lines()


def merge_reports(reports: Sequence[ExportReport]) -> ExportReport:
    """Return the sum of the reports of several exporters: of texts the first, of names as many as one report has."""
    columns = [(field.name, [getattr(report, field.name) for report in reports]) for field in fields(ExportReport)]
    merged: dict[str, Any] = {}
    for name, values in columns:
        match values[0]:
            case int():
                merged[name] = sum(values)
            case str():
                merged[name] = next(filter(None, values), "")
            case tuple():
                merged[name] = tuple(sorted(dict.fromkeys(chain.from_iterable(values)), key=_natural_order)[:MAX_NAMED])
    return ExportReport(**merged)


def _natural_order(named: Rejection | str) -> str:
    """Sort places as in their file: ``runs.ndjson:9`` before ``runs.ndjson:10``."""
    text = named.what if isinstance(named, Rejection) else named
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), text)


def export_samples(report: ExportReport) -> Samples:
    """Return the report as metrics: ``registry.register(lambda: export_samples(exporter.report()))``."""
    return {
        EXPORTED: report.runs_accepted,
        REJECTED: report.runs_rejected,
        REFUSED: report.documents_refused,
        REQUESTS: report.requests,
        RETRIED: report.retries,
        QUEUE: report.runs_pending,
    }


class RunStatus(Enum):
    """The result of one submitted run."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_SENT = "not sent"


OnSettled = Callable[[tuple[RunSpans, ...], RunStatus, str], None]
"""Called with runs, their status and the reason, or "". It runs on the threads that send, so it must be quick."""


class ExportStats:
    """Count runs and spans while requests are in flight. Thread-safe.

    dead_letters: Keeps the documents that are not accepted.
    on_settled: See ``OnSettled``.
    """

    def __init__(self, dead_letters: DeadLetters | None = None, on_settled: OnSettled | None = None) -> None:
        self.dead_letters = dead_letters
        self._on_settled: OnSettled = on_settled or (lambda runs, status, reason: None)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        """By the names of the report's fields; "runs_submitted" and "spans_submitted" as well."""
        self._rejections: list[Rejection] = []
        self._refusals: list[Rejection] = []
        self._warnings: list[str] = []
        self._skipped: list[str] = []

    def submitted(self, runs: tuple[RunSpans, ...]) -> None:
        with self._lock:
            self._add("submitted", runs)

    def sent(self, size: int, *, is_retry: bool) -> None:
        """Count one attempt. size: Bytes of the body."""
        with self._lock:
            self._counts["requests"] += 1
            self._counts["retries"] += is_retry
            self._counts["bytes"] += size

    def accepted(self, runs: tuple[RunSpans, ...], message: str) -> None:
        with self._lock:
            self._add("accepted", runs)
            if self.dead_letters is not None:
                self.dead_letters.ack(runs)
            if message and message not in self._warnings and len(self._warnings) < MAX_NAMED:
                self._warnings.append(message)
            self._on_settled(runs, RunStatus.ACCEPTED, message)

    def rejected(self, runs: tuple[RunSpans, ...], reason: str) -> int:
        """Count rejected runs and return how many there are so far."""
        with self._lock:
            self._add("rejected", runs)
            self._keep(runs)
            for run in runs[: MAX_NAMED - len(self._rejections)]:
                self._rejections.append(Rejection(run.run_id, reason, run.span_count))
            self._on_settled(runs, RunStatus.REJECTED, reason)
            return self._counts["runs_rejected"]

    def not_sent(self, runs: tuple[RunSpans, ...]) -> None:
        with self._lock:
            self._add("not_sent", runs)
            self._keep(runs)
            self._on_settled(runs, RunStatus.NOT_SENT, "")

    def skipped(self, path: str) -> None:
        """Count a symbolic link that is not followed."""
        with self._lock:
            self._counts["links_skipped"] += 1
            if len(self._skipped) < MAX_NAMED:
                self._skipped.append(path)

    def refused(self, error: DocumentError) -> None:
        """Count a document that cannot be carried exactly."""
        with self._lock:
            self._counts["documents_refused"] += 1
            if len(self._refusals) < MAX_NAMED:
                # The text of the error repeats its place.
                self._refusals.append(Rejection(error.where, str(error).removeprefix(f"{error.where}: "), 0))

    def report(self, stopped: str = "") -> ExportReport:
        """Return the current counts. stopped: Why sending ended early, or ""."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
            settled = sum(self._counts[f"runs_{status}"] for status in ("accepted", "rejected", "not_sent"))
            settled_spans = sum(self._counts[f"spans_{status}"] for status in ("accepted", "rejected", "not_sent"))
            return ExportReport(
                runs_pending=counts.pop("runs_submitted", 0) - settled,
                spans_pending=counts.pop("spans_submitted", 0) - settled_spans,
                rejections=tuple(self._rejections),
                refusals=tuple(self._refusals),
                warnings=tuple(self._warnings),
                skipped=tuple(self._skipped),
                stopped=stopped,
                **counts,
            )

    def _add(self, status: str, runs: tuple[RunSpans, ...]) -> None:
        self._counts[f"runs_{status}"] += len(runs)
        self._counts[f"spans_{status}"] += sum([run.span_count for run in runs])

    def _keep(self, runs: tuple[RunSpans, ...]) -> None:
        if self.dead_letters is not None:
            for run in runs:
                self.dead_letters.write_text(run.text)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return plural(count, "byte")


def _named(rejections: Iterable[Rejection], total: int) -> list[str]:
    return reason_lines([(each.what, each.reason) for each in rejections], total, MAX_NAMED)


def reason_lines(named: Iterable[tuple[str, str]], total: int, limit: int) -> list[str]:
    """Return a line for each reason, with what it applies to.

    - ``named``: what, and the reason; of ``total`` the first ``limit``.
    """
    by_reason: dict[str, list[str]] = {}
    for what, reason in named:
        by_reason.setdefault(reason, []).append(what)
    lines = []
    for reason, whats in by_reason.items():
        times = f"{len(whats)} times: " if len(whats) > 1 else ""
        names = f"{_some(whats)}: " if _some(whats) else ""
        lines.append("  " + sanitize_message(f"{times}{names}{reason}"))
    count = sum(map(len, by_reason.values()))
    return lines if total <= limit else [*lines, f"  … the first {count} by name"]


def _some(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f", … {len(names) - _NAMED_IN_ONE} more" if len(names) > _NAMED_IN_ONE else ""
    return ", ".join(filter(None, names[:_NAMED_IN_ONE])) + more


def plural(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural when it is not 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
