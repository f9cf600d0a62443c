"""Sends runs, and looks for them until a backend returns each by its id and in a list, or the time is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec import Struct

from runspan import errors
from runspan.codec.encode import encode
from runspan.codec.fields import MAX_ATTRIBUTE_BYTES
from runspan.contracts import MAX_LIMIT, Cursor, RunQuery, TraceReader
from runspan.model.document import RUN_STATUSES, Run, sort_time, str_or_none
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import SECOND, parse_ns
from runspan.verify.diagnosis import (
    DAY,
    JAEGER,
    SpanDamage,
    advice_on_absence,
    advice_on_damage,
    advice_on_search,
    advice_on_unreadable_trace,
    span_damage,
)

Result = Literal["same", "not in lists", "different", "incomplete", "not found", "rejected", "unreadable"]

FIRST_PAUSE: Final = 0.1
MAX_PAUSE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of sending runs."""

    rejected: Mapping[str, str] = field(default_factory=dict)
    """Run id → reason."""
    stopped: str = ""
    """Why sending ended early, or ""."""


Send = Callable[[Sequence[Run], int], Sent]
"""Sends runs to a backend, as observed at a time in nanoseconds since 1970."""


class VerifyResult(
    Struct, rename={"run_id": "id", "trace_id": "traceId", "by_id": "secondsById", "in_lists": "secondsInLists"}
):
    """The result for one run. ``msgspec`` converts it to JSON."""

    run_id: str
    trace_id: str
    result: Result = "not found"
    """``same`` if the document came back byte for byte, and lists contain it."""
    detail: str = ""
    advice: tuple[str, ...] = ()
    """The settings of the backend to change, so that the run comes back."""
    by_id: float | None = None
    """Seconds until it was read by its id; None if it was not."""
    in_lists: float | None = None
    """Seconds until a list contained it; None if none did."""


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
    """Send runs with different ids, and return the result for each of them in order.

    Raise BackendUnreachable or BackendBusy if the backend never responded, so that nothing is known about any run.

    - ``kind``: of the backend, ``tempo``, ``jaeger`` or another, for the advice.
    - ``wait``: seconds until a run must be found. Each is looked for at least once.
    - ``now``: nanoseconds since 1970.
    - ``clock``: returns monotonic seconds.
    """
    sent = send(runs, now)
    checks = [_RunCheck(run, reader, kind, tenant, now) for run in runs]
    pending = []
    for check in checks:
        if check.run.id in sent.rejected:
            check.set("rejected", sent.rejected[check.run.id])
        else:
            pending.append(check)
    started, pause = clock(), FIRST_PAUSE
    while pending:
        error = _check_all(pending, lambda: clock() - started)
        pending = [check for check in pending if check.result.in_lists is None]
        remaining = wait - (clock() - started)
        if remaining <= 0:
            if error is not None and all(check.result.by_id is None for check in checks):
                raise error
            for check in pending:
                check.explain(sent.stopped or (str(error) if error else ""))
            break
        if pending:
            retry_after = (error and error.retry_after) or 0.0
            sleep(min(max(pause, retry_after), remaining))
            pause = min(2 * pause, MAX_PAUSE)
    for check in checks:
        check.note_cut_attributes()
        check.note_unreadable_trace()
    return [check.result for check in checks]


def _check_all(checks: Sequence[_RunCheck], seconds: Callable[[], float]) -> errors.BackendError | None:
    """Look once for each run. Return the error if the backend does not respond."""
    for check in checks:
        result = check.result
        try:
            if result.by_id is None and check.is_readable():
                result.by_id = seconds()
            if result.by_id is not None and check.is_listed():
                result.in_lists = seconds()
                check.set("same")
        except (errors.BackendUnreachable, errors.BackendBusy) as error:
            return error
        except errors.RunspanError as error:
            check.set("unreadable", str(error))
    return None


@dataclass(slots=True)
class _RunCheck:
    """Looks for one run."""

    run: Run
    reader: TraceReader
    kind: str
    tenant: str
    now: int
    result: VerifyResult = field(init=False)

    def __post_init__(self) -> None:
        self.result = VerifyResult(self.run.id, run_ids(self.run.id, self.tenant).trace_id.hex())

    def set(self, result: Result, detail: str = "") -> None:
        self.result.result, self.result.detail = result, detail

    def is_readable(self) -> bool:
        """Return whether the backend returns the same document."""
        try:
            document = self.reader.document(self.run.id, self.tenant)
        except errors.NotFound:
            self.set("not found")
        except errors.TraceIncomplete as error:
            self.set("incomplete", "; ".join(error.missing[:3]) or str(error))
        else:
            if document.text == self.run.text:
                self.set("not in lists")
                return True
            detail = "; ".join(document.incomplete[:3]) or "the backend has another revision of this run"
            self.set("incomplete" if document.incomplete else "different", detail)
        return False

    def is_listed(self) -> bool:
        """Return whether lists of the run's workflow and status contain it: at its time, or among the newest runs."""
        run = self.run
        at = sort_time(run.envelope)
        query = RunQuery(
            self.tenant,
            run.workflow_id,
            run.status if run.status in RUN_STATUSES else None,
            since=at or None,
            # A run without any time lies at the time when it first arrived, which a reader does not return.
            limit=1 if at else MAX_LIMIT,
            # Equal times are sorted by run id, descending, so only the run itself can follow this cursor.
            cursor=Cursor(at, run.id + "\0") if at else None,
        )
        try:
            page = self.reader.search(query)
        except errors.QueryUnsupported as error:
            self.set("not in lists", str(error))
            return False
        self.set("not in lists", "; ".join(page.partial[:3]))
        return run.summary() in page.items

    def explain(self, error: str) -> None:
        """Note what the backend did to a run that did not come back, and advice."""
        result = self.result
        if result.result == "not in lists":
            result.advice = advice_on_search(self.kind, self._age())
        elif result.result == "not found":
            nested_objects = span_damage(self._encoded(), []).nested_objects
            result.advice = advice_on_absence(self.kind, self._age(), nested_objects)
            result.detail = result.detail or error
        else:
            damage = self._damage(self._encoded())
            result.advice = advice_on_damage(self.kind, damage)
            if damage.missing == damage.expected and result.result == "incomplete":
                result.advice = advice_on_absence(self.kind, self._age(), damage.nested_objects)
            result.detail = "; ".join(filter(None, (str(damage), result.detail)))

    def note_cut_attributes(self) -> None:
        """If the document is the same, note which of the attributes that it does not depend on were cut."""
        encoded = self._encoded() if self.result.result == "same" else []
        if not any(_is_long(value) for span in encoded for value in span.attributes().values()):
            return
        damage = self._damage(encoded)
        if damage.cut:
            self.result.detail = f"{damage}, none that the document needs"
            self.result.advice = advice_on_damage(self.kind, damage)

    def note_unreadable_trace(self) -> None:
        """If an old document is the same, note that its trace is not found by its id: viewers do not show it then."""
        if self.kind != JAEGER or self.result.result != "same" or self._age() < DAY:
            return
        try:
            self.reader.spans(bytes.fromhex(self.result.trace_id))
        except errors.NotFound:
            self.result.detail = "found by a search only: its trace cannot be read by its id"
            self.result.advice = (*self.result.advice, *advice_on_unreadable_trace(self.kind))

    def _encoded(self) -> list[Span]:
        return encode(self.run, tenant=self.tenant, observed_at=self.now)

    def _damage(self, encoded: Sequence[Span]) -> SpanDamage:
        try:
            found = self.reader.spans(bytes.fromhex(self.result.trace_id))
        except errors.RunspanError:
            found = []
        return span_damage(encoded, found)

    def _age(self) -> float:
        """Return the seconds since the run's end, or since its start if it has none; below 0 in the future."""
        envelope = self.run.envelope
        completed = str_or_none(envelope.completed_at)
        at = (completed and parse_ns(completed)) or sort_time(envelope) or self.now
        return (self.now - at) / SECOND


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value.encode()) > MAX_ATTRIBUTE_BYTES
