"""Runs sent and looked for until a backend shows each by its id and in a list, or the time is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from runspan.codec.encode import encode
from runspan.codec.fields import MAX_ATTRIBUTE_BYTES
from runspan.contracts import Cursor, RunQuery, TraceReader
from runspan.errors import (
    BackendBusy,
    BackendError,
    BackendUnreachable,
    NotFound,
    QueryUnsupported,
    RunspanError,
    TraceIncomplete,
)
from runspan.model.document import RUN_STATUSES, sort_time, str_or_none
from runspan.model.ids import run_ids
from runspan.model.run import Run
from runspan.model.span import Span
from runspan.model.timestamps import SECOND, parse_ns
from runspan.verify.diagnosis import advice_on_absence, advice_on_damage, advice_on_search, span_damage

Result = Literal["same", "not in lists", "different", "incomplete", "not found", "not taken", "not read"]
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of runs that were sent. refused: why, by run id. trouble: why sending ended early, or ""."""

    refused: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""


class Send(Protocol):
    """Brings runs into a backend, as observed at a time in nanoseconds since 1970."""

    def __call__(self, runs: Sequence[Run], observed_at: int) -> Sent: ...


@dataclass(slots=True)
class VerifyResult:
    """What came of one run.

    result: ``same`` when the document came back byte for byte and lists show it. detail: what else there is to say.
    settings: what to change so that it comes back. by_id, in_lists: seconds until it was seen, None when it was not.
    """

    run_id: str
    trace_id: str
    result: Result = "not found"
    detail: str = ""
    settings: tuple[str, ...] = ()
    by_id: float | None = None
    in_lists: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.run_id,
            "traceId": self.trace_id,
            "result": self.result,
            "detail": self.detail,
            "settings": list(self.settings),
            "secondsById": self.by_id,
            "secondsInLists": self.in_lists,
        }


def verify(
    runs: Sequence[Run],
    send: Send,
    reader: TraceReader,
    *,
    kind: str,
    tenant: str = "",
    wait: float,
    now: int,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[VerifyResult]:
    """Sends runs with different ids, and reports on each of them in order.

    kind: of the backend, ``tempo``, ``jaeger`` or another, which decides what is advised. wait: seconds until a run
    must be seen; each is looked for at least once. now: nanoseconds since 1970. clock: monotonic seconds.
    BackendUnreachable when the backend was not reached in all that time, and so nothing is known of any run.
    """
    sent = send(runs, now)
    check = _Verification(reader, kind, tenant, now)
    verdicts = [VerifyResult(run.id, run_ids(run.id, tenant).trace_id.hex()) for run in runs]
    open_ones = []
    for run, verdict in zip(runs, verdicts, strict=True):
        if run.id in sent.refused:
            verdict.result, verdict.detail = "not taken", sent.refused[run.id]
        else:
            open_ones.append((run, verdict))
    begun, pause = clock(), FIRST_PAUSE
    while open_ones:
        trouble = _round(check, open_ones, lambda: clock() - begun)
        open_ones = [(run, verdict) for run, verdict in open_ones if verdict.in_lists is None]
        left = wait - (clock() - begun)
        if left <= 0:
            if trouble is not None and all(verdict.by_id is None for verdict in verdicts):
                raise trouble
            for run, verdict in open_ones:
                check.explain(run, verdict, sent.trouble or (str(trouble) if trouble else ""))
            break
        if open_ones:
            asked = trouble.retry_after if isinstance(trouble, BackendBusy) else None
            sleep(min(max(pause, asked or 0.0), left))
            pause = min(2 * pause, LONGEST_PAUSE)
    for run, verdict in zip(runs, verdicts, strict=True):
        if verdict.result == "same":
            check.warn(run, verdict)
    return verdicts


def _round(
    check: _Verification, runs: Sequence[tuple[Run, VerifyResult]], seconds: Callable[[], float]
) -> BackendError | None:
    """Looks once for each run; ends early when the backend does not answer, and tells how."""
    for run, verdict in runs:
        try:
            if verdict.by_id is None and check.by_id(run, verdict):
                verdict.by_id = seconds()
            if verdict.by_id is not None and check.in_lists(run, verdict):
                verdict.in_lists = seconds()
                verdict.result, verdict.detail = "same", ""
        except (BackendUnreachable, BackendBusy) as error:
            return error
        except RunspanError as error:
            verdict.result, verdict.detail = "not read", str(error)
    return None


class _Verification:
    """Looks for single runs."""

    def __init__(self, reader: TraceReader, kind: str, tenant: str, now: int) -> None:
        self._reader = reader
        self._kind = kind
        self._tenant = tenant
        self._now = now

    def by_id(self, run: Run, verdict: VerifyResult) -> bool:
        """Whether the document is there, the same."""
        try:
            document = self._reader.document(run.id, self._tenant)
        except NotFound:
            verdict.result, verdict.detail = "not found", ""
        except TraceIncomplete as error:
            verdict.result, verdict.detail = "incomplete", "; ".join(error.missing[:3]) or str(error)
        else:
            if document.text == run.text:
                verdict.result, verdict.detail = "not in lists", ""
                return True
            verdict.result = "incomplete" if document.incomplete else "different"
            verdict.detail = "; ".join(document.incomplete[:3]) or "the backend has another revision of this run"
        return False

    def in_lists(self, run: Run, verdict: VerifyResult) -> bool:
        """Whether a list of its workflow and status at its time begins with it."""
        at = sort_time(run.envelope)
        query = RunQuery(
            self._tenant,
            run.workflow_id,
            run.status if run.status in RUN_STATUSES else None,
            since=at or None,
            limit=1,
            # Ties go by run id, descending: the next one after this cursor can only be the run itself.
            cursor=Cursor(at, run.id + "\0"),
        )
        verdict.result = "not in lists"
        try:
            page = self._reader.search(query)
        except QueryUnsupported as error:
            verdict.detail = str(error)
            return False
        verdict.detail = "; ".join(page.partial[:3])
        return list(page.items) == [run.summary()]

    def explain(self, run: Run, verdict: VerifyResult, trouble: str) -> None:
        """Says what the backend did to a run that did not come back, and which settings to change."""
        if verdict.result == "not in lists":
            verdict.settings = tuple(advice_on_search(self._kind, self._age(run)))
        elif verdict.result == "not found":
            verdict.settings = tuple(advice_on_absence(self._kind, self._age(run)))
            verdict.detail = verdict.detail or trouble
        elif verdict.result in ("incomplete", "different", "not read"):
            found = span_damage(self._sent(run), self._found(run))
            verdict.settings = tuple(advice_on_damage(self._kind, found))
            if found.missing == found.expected and verdict.result == "incomplete":
                verdict.settings = tuple(advice_on_absence(self._kind, self._age(run)))
            verdict.detail = "; ".join(filter(None, (found.words(), verdict.detail)))

    def warn(self, run: Run, verdict: VerifyResult) -> None:
        """Notes what the backend cut of the attributes for people, which no document depends on."""
        sent = self._sent(run)
        if not any(_is_long(value) for span in sent for value in span.attributes().values()):
            return
        found = span_damage(sent, self._found(run))
        if found.cut:
            verdict.detail = f"{found.words()}, none that the document needs"
            verdict.settings = tuple(advice_on_damage(self._kind, found))

    def _sent(self, run: Run) -> list[Span]:
        return encode(run, tenant=self._tenant, observed_at=self._now)

    def _found(self, run: Run) -> list[Span]:
        try:
            return self._reader.spans(run_ids(run.id, self._tenant).trace_id)
        except RunspanError:
            return []

    def _age(self, run: Run) -> float:
        """Seconds since the run's end, or since its start while it has none; below 0 in the future."""
        completed = str_or_none(run.envelope.completed_at)
        at = (completed and parse_ns(completed)) or sort_time(run.envelope) or self._now
        return (self._now - at) / SECOND


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value.encode()) > MAX_ATTRIBUTE_BYTES
