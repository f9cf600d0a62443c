"""What came of an export: counts of everything and the names of what went wrong, for people and for programs; no I/O.

Every run that was handed over is in exactly one count: accepted, rejected, in doubt, not sent or pending.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from runspan.contracts import Rejection
from runspan.delivery.batch import RunSpans
from runspan.delivery.dead_letters import DeadLetters
from runspan.errors import DocumentError
from runspan.http.urls import sanitize_message

MAX_NAMED = 100
"""How many rejections of a kind are kept by name; all of them are counted."""

_NAMED_IN_ONE = 5


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Runs and spans as the receiver answered for them.

    in_doubt: runs of a request from which the receiver rejected some spans without saying which. pending: no answer
    yet, or, at the end, none that was waited for. rejections, refusals: the first ``MAX_NAMED``, by name.
    documents_refused: documents that are not sent because they cannot be carried exactly. requests: attempts, with
    the ``retries`` among them. bytes: of their bodies, before compression. stopped: why sending ended early, or "".
    documents_kept, kept_in: how many documents were not taken and stand in that file; documents_lost: how many should
    and do not, because of ``keeping_failed``.
    """

    runs_accepted: int = 0
    runs_rejected: int = 0
    runs_in_doubt: int = 0
    runs_not_sent: int = 0
    runs_pending: int = 0
    spans_accepted: int = 0
    spans_rejected: int = 0
    spans_not_sent: int = 0
    spans_pending: int = 0
    documents_refused: int = 0
    requests: int = 0
    retries: int = 0
    bytes: int = 0
    rejections: tuple[Rejection, ...] = ()
    refusals: tuple[Rejection, ...] = ()
    warnings: tuple[str, ...] = ()
    stopped: str = ""
    documents_kept: int = 0
    documents_lost: int = 0
    kept_in: str = ""
    keeping_failed: str = ""

    @property
    def complete(self) -> bool:
        """Whether every document was carried and every span accepted."""
        short = self.runs_rejected + self.runs_in_doubt + self.runs_not_sent + self.runs_pending
        return not (short or self.documents_refused or self.stopped)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"complete": self.complete, **asdict(self)}

    def with_dead_letters(self, letters: DeadLetters) -> ExportReport:
        """The same with what a closed file of dead letters holds."""
        return replace(
            self,
            documents_kept=letters.kept,
            documents_lost=letters.lost,
            kept_in=letters.path if letters.kept or letters.lost else "",
            keeping_failed=letters.trouble,
        )

    def summary_lines(self) -> list[str]:
        """A line for each thing worth knowing; the first is always there."""
        accepted = f"{_count(self.runs_accepted, 'run')} accepted, {_count(self.spans_accepted, 'span')}"
        lines = [f"{accepted}, {_count(self.requests, 'request')}, {_size(self.bytes)}"]
        if self.retries:
            lines.append(f"{_count(self.retries, 'request')} sent again")
        if self.runs_rejected or self.runs_in_doubt:
            doubt = f", {_count(self.runs_in_doubt, 'run')} in doubt" if self.runs_in_doubt else ""
            lines.append(f"{_count(self.runs_rejected, 'run')} rejected{doubt}, {_count(self.spans_rejected, 'span')}:")
            lines += _named(self.rejections, self.runs_rejected + self.runs_in_doubt)
        if self.documents_refused:
            lines.append(f"{_count(self.documents_refused, 'document')} refused, not sent:")
            lines += _named(self.refusals, self.documents_refused)
        lines += [f"warning of the receiver: {warning}" for warning in self.warnings]
        if self.stopped:
            # Dead letters hold the rest of the input, unless somebody was in a hurry.
            unread = not self.kept_in or self.stopped == "interrupted"
            lines.append(f"stopped: {self.stopped}" + "; the input may not have been read to its end" * unread)
        if self.runs_not_sent:
            lines.append(f"{_count(self.runs_not_sent, 'run')} not sent, {_count(self.spans_not_sent, 'span')}")
        if self.runs_pending:
            lines.append(f"{_count(self.runs_pending, 'run')} without an answer, {_count(self.spans_pending, 'span')}")
        if self.documents_kept:
            again = sanitize_message(f"runspan export {shlex.quote(self.kept_in)}")
            lines.append(
                f"{_count(self.documents_kept, 'document')} kept in {sanitize_message(self.kept_in)}; to send: {again}"
            )
        if self.documents_lost:
            failure = f"{sanitize_message(self.kept_in)} could not be written: {self.keeping_failed}"
            lines.append(f"{_count(self.documents_lost, 'document')} NOT kept: {failure}")
        return lines


class RunStatus(Enum):
    """What came of a run that was handed over; each run gets one."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNKNOWN = "in doubt"
    NOT_SENT = "not sent"


OnSettled = Callable[[tuple[RunSpans, ...], RunStatus, str], None]
"""Told of the runs that got a verdict, and why, or "". Called from the threads that send: it must be quick."""


class ExportStats:
    """Counts while requests are under way. Every method may be called from several threads.

    letters: keeps the documents that are not taken. on_settled: see ``OnSettled``.
    """

    def __init__(self, letters: DeadLetters | None = None, on_settled: OnSettled | None = None) -> None:
        self.letters = letters
        self._on_settled = on_settled or _ignore
        self._lock = threading.Lock()
        self._runs = dict.fromkeys(("submitted", "accepted", "rejected", "in_doubt", "not_sent"), 0)
        self._spans = dict.fromkeys(("submitted", "accepted", "rejected", "not_sent"), 0)
        self._sent = dict.fromkeys(("requests", "retries", "bytes"), 0)
        self._documents_refused = 0
        self._rejections: list[Rejection] = []
        self._refusals: list[Rejection] = []
        self._warnings: list[str] = []

    def submitted(self, runs: tuple[RunSpans, ...]) -> None:
        with self._lock:
            self._add("submitted", runs)

    def sent(self, size: int, *, again: bool) -> None:
        """One attempt."""
        with self._lock:
            self._sent["requests"] += 1
            self._sent["retries"] += again
            self._sent["bytes"] += size

    def accepted(self, runs: tuple[RunSpans, ...], message: str) -> None:
        with self._lock:
            self._add("accepted", runs)
            if self.letters is not None:
                self.letters.ack(runs)
            if message and message not in self._warnings and len(self._warnings) < MAX_NAMED:
                self._warnings.append(message)
            self._on_settled(runs, RunStatus.ACCEPTED, message)

    def rejected(self, runs: tuple[RunSpans, ...], reason: str) -> int:
        """Returns how many runs were rejected so far."""
        with self._lock:
            self._add("rejected", runs)
            self._keep(runs)
            for run in runs[: MAX_NAMED - len(self._rejections)]:
                self._rejections.append(Rejection(run.run_id, reason, len(run.spans)))
            self._on_settled(runs, RunStatus.REJECTED, reason)
            return self._runs["rejected"]

    def partial(self, runs: tuple[RunSpans, ...], rejected_spans: int, message: str) -> None:
        """Some spans rejected: of the only run, of all runs, or of nobody knows which."""
        total = sum(len(run.spans) for run in runs)
        rejected_spans = min(rejected_spans, total)
        message = f"{rejected_spans} of {total} spans rejected: {message or 'no reason given'}"
        if rejected_spans == total:
            self.rejected(runs, message)
            return
        with self._lock:
            self._runs["rejected" if len(runs) == 1 else "in_doubt"] += len(runs)
            self._keep(runs)
            self._spans["rejected"] += rejected_spans
            self._spans["accepted"] += total - rejected_spans
            if len(self._rejections) < MAX_NAMED:
                self._rejections.append(Rejection(_which(runs), message, rejected_spans))
            self._on_settled(runs, RunStatus.REJECTED if len(runs) == 1 else RunStatus.UNKNOWN, message)

    def not_sent(self, runs: tuple[RunSpans, ...]) -> None:
        with self._lock:
            self._add("not_sent", runs)
            self._keep(runs)
            self._on_settled(runs, RunStatus.NOT_SENT, "")

    def refused(self, error: DocumentError) -> None:
        """A document that cannot be carried exactly."""
        with self._lock:
            self._documents_refused += 1
            if len(self._refusals) < MAX_NAMED:
                # The error's own text repeats the place.
                what, text = error.where, str(error)
                self._refusals.append(Rejection(what, text.removeprefix(f"{what}: "), 0))

    def report(self, stopped: str = "") -> ExportReport:
        """The counts as they stand."""
        with self._lock:
            runs, spans = self._runs, self._spans
            answered = runs["accepted"] + runs["rejected"] + runs["in_doubt"] + runs["not_sent"]
            return ExportReport(
                runs_accepted=runs["accepted"],
                runs_rejected=runs["rejected"],
                runs_in_doubt=runs["in_doubt"],
                runs_not_sent=runs["not_sent"],
                runs_pending=runs["submitted"] - answered,
                spans_accepted=spans["accepted"],
                spans_rejected=spans["rejected"],
                spans_not_sent=spans["not_sent"],
                spans_pending=spans["submitted"] - spans["accepted"] - spans["rejected"] - spans["not_sent"],
                documents_refused=self._documents_refused,
                rejections=tuple(self._rejections),
                refusals=tuple(self._refusals),
                warnings=tuple(self._warnings),
                stopped=stopped,
                requests=self._sent["requests"],
                retries=self._sent["retries"],
                bytes=self._sent["bytes"],
            )

    def _add(self, count: str, runs: tuple[RunSpans, ...]) -> None:
        self._runs[count] += len(runs)
        self._spans[count] += sum([len(run.spans) for run in runs])

    def _keep(self, runs: tuple[RunSpans, ...]) -> None:
        if self.letters is not None:
            self.letters.write(runs)


def _ignore(runs: tuple[RunSpans, ...], verdict: RunStatus, reason: str) -> None:
    pass


def _which(runs: tuple[RunSpans, ...]) -> str:
    if len(runs) == 1:
        return runs[0].run_id
    named = ", ".join(run.run_id for run in runs[:_NAMED_IN_ONE])
    more = f", … {len(runs) - _NAMED_IN_ONE} more" if len(runs) > _NAMED_IN_ONE else ""
    return f"one or more of {named}{more}"


def _named(rejections: Iterable[Rejection], total: int) -> list[str]:
    """A line for each reason, with the names that it was given for."""
    names: dict[str, list[str]] = {}
    for each in rejections:
        names.setdefault(each.reason, []).append(each.what)
    lines = [_folded(reason, whats) for reason, whats in names.items()]
    named = sum(map(len, names.values()))
    return lines if total <= MAX_NAMED else [*lines, f"  … the first {named} by name"]


def _folded(reason: str, names: list[str]) -> str:
    named = ", ".join(filter(None, names[:_NAMED_IN_ONE]))
    more = f", … {len(names) - _NAMED_IN_ONE} more" if len(names) > _NAMED_IN_ONE else ""
    times = f"{len(names)} times: " if len(names) > 1 else ""
    return "  " + sanitize_message(f"{times}{named}{more}: {reason}" if named else f"{times}{reason}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(number: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"
