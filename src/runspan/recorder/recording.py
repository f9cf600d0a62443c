"""What an engine uses to record: ``RunRecording``, one run of a workflow, and ``StepRecording``, one of its steps.

Both are context managers, with or without ``async``, and decorators. Beginning and ending never wait for a receiver,
and no error of telemetry is raised into the engine. Every method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack

from msgspec import UNSET

from runspan.model.document import Envelope, Run, Step
from runspan.recorder.checkpoint import checkpoint
from runspan.recorder.context import ActiveSpan, activate, active, active_spans, deactivate
from runspan.recorder.decorators import record_calls
from runspan.recorder.outbox import FlushResult
from runspan.recorder.serialize import (
    Payload,
    error_text,
    members,
    note_step,
    optional_text,
    payload,
    to_utf8_text,
)
from runspan.recorder.state import Attempt, RunRecord, StepRecord, attempt_span_id
from runspan.recorder.worker import ExportWorker

F = TypeVar("F", bound=Callable[..., Any])

KNOWN_RUN_MEMBERS: Final = {*Envelope.__struct_encode_fields__, "parentRunId", "traceparent"}
_KNOWN_STEP_MEMBERS: Final = {*Step.__struct_encode_fields__, "attempts"}
_CANCELLATIONS: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)
"""Exceptions that make a run cancelled, not failed."""


class _Recording(ABC):
    """What runs and steps have in common: the asynchronous context manager, the decorator, the output."""

    def __init__(self, input: object, capture_input: bool, capture_output: bool) -> None:
        self._input = input
        self._capture_input = capture_input
        self._capture_output = capture_output
        self._active_span: ActiveSpan | None = None
        self._output_is_set = False

    def __call__(self, function: F) -> F:
        """Decorate a function, coroutine function or generator function: each call is a recording of its own.

        The arguments become the input and the result the output, unless the function sets them itself or the recording
        was made with ``capture_input=False`` or ``capture_output=False``. The recording of a generator lasts until the
        generator ends, and is current only while the generator itself runs.
        """
        capture_input = self._capture_input and self._input is UNSET
        return record_calls(function, self._for_call, capture_input, self._capture_output)

    @abstractmethod
    def _for_call(self) -> RunRecording | StepRecording:
        """Return a recording of the same arguments, for one call of a decorated function."""

    @abstractmethod
    def _span(self) -> tuple[RunRecording, bytes] | None:
        """Return the run and the id of the span that is current in the block; None when nothing is recorded."""

    @abstractmethod
    def _set(self, member: str, value: Payload) -> Self: ...

    def set_input(self, value: object) -> Self:
        """Set the input. The value is serialized now; later changes to it have no effect."""
        return self._set("input", payload(value))

    def set_output(self, value: object) -> Self:
        """Set the output. The value is serialized now; later changes to it have no effect. Until the end, another call
        replaces the output."""
        self._output_is_set = True
        return self._set("output", payload(value))

    def set_result(self, value: object) -> None:
        """Set the output unless it is set already; for decorators."""
        if not self._output_is_set:
            self.set_output(value)

    @abstractmethod
    def start(self) -> Self: ...

    @abstractmethod
    def end(self, error: object = None) -> None: ...

    def __enter__(self) -> Self:
        self.start()
        if (span := self._span()) is not None:
            run, span_id = span
            self._active_span = activate(run, self, span_id)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._active_span is not None:
            deactivate(self._active_span)
            self._active_span = None
        # A generator that is closed before its end has not failed: its caller needed no more items.
        self._end_block(None if isinstance(error, GeneratorExit) else error)

    def _end_block(self, error: BaseException | None) -> None:
        self.end(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.__exit__(kind, error, traceback)

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Make what has begun current for a block, for example in a thread that works on it. It continues after the
        block."""
        if (span := self._span()) is None:
            yield self
            return
        run, span_id = span
        with active(run, self, span_id):
            yield self


class StepOptions(TypedDict, total=False):
    """The options of a step; see ``Recorder.step``."""

    name: str | None
    type: str | None
    input: object
    retry: Mapping[str, object] | None
    extra: Mapping[str, object] | None
    capture_input: bool
    capture_output: bool


class RunRecording(_Recording):
    """One run. Made by ``Recorder.run`` and ``Recorder.resume``.

    An exception that leaves the block is raised again; it makes the run failed, or cancelled when it is a cancellation,
    Ctrl-C or ``SystemExit``. Calls after the run has ended change nothing and are counted in ``RecorderReport``.
    """

    def __init__(
        self,
        worker: ExportWorker,
        make: Callable[[], RunRecord],
        *,
        input: object = UNSET,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> None:
        """make: makes the record when the run begins; a decorated function makes one for each call."""
        super().__init__(input, capture_input, capture_output)
        self._worker = worker
        self._make = make
        self._record: RunRecord | None = None
        self._record_lock = threading.RLock()

    def _for_call(self) -> RunRecording:
        return RunRecording(self._worker, self._make, input=self._input)

    # Beginning and ending.

    @property
    def record(self) -> RunRecord:
        """The state of the run, made on first use; the run is ``pending`` then."""
        if self._record is not None:
            return self._record
        with self._record_lock:
            if self._record is None:
                record = self._make()
                if self._input is not UNSET:
                    record.set_member("input", payload(self._input))
                self._record = self._record or record  # a signal handler may have made one in the meantime
            return self._record

    def queue(self) -> Self:
        """Record a run that waits for its start: it is exported as ``pending``."""
        self._worker.outbox.register(self.record)
        return self

    def start(self) -> Self:
        """Begin the run without making it current; for engines that begin and end it in different places."""
        record = self.record

        def write() -> None:
            now = record.timestamp(record.created_at)
            record.started_at = now if record.started_at is None else record.started_at
            if record.status == "pending":
                record.status = "running"

        if record.status == "pending" or record.started_at is None:
            record.change(write, status=True)
        self._worker.outbox.register(record)
        return self

    def end(self, error: object = None) -> None:
        """End the run as completed, or as failed with an exception, a message or an error object. Only the first call
        counts."""
        self._end("completed" if error is None else "failed", error)

    def cancel(self, reason: object = None) -> None:
        """End the run as cancelled."""
        self._end("cancelled", reason)

    def time_out(self, reason: object = None) -> None:
        """End the run as timed out: it took longer than it may."""
        self._end("timed_out", reason, "TIMEOUT")

    def _end(self, status: str, error: object, code: str = "") -> None:
        record = self.record
        if record.has_ended:
            return
        if not record.registered:
            self._worker.outbox.register(record)  # cancelled while it was queued, or resumed
        text = None if error is None else error_text(error, record.id, code=code)

        def write() -> None:
            latest = max([record.started_at or record.created_at, *[step.ended_at or 0 for step in record.steps]])
            record.ended_at = record.timestamp(latest)
            record.status = status
            record.error = text or record.error

        record.change(write, status=True)

    def _end_block(self, error: BaseException | None) -> None:
        if isinstance(error, _CANCELLATIONS):
            self.cancel(error)
        else:
            self.end(error)

    def _span(self) -> tuple[RunRecording, bytes]:
        return self, self.record.root_id

    # Steps.

    def step(self, step_id: str, **options: Unpack[StepOptions]) -> StepRecording:
        """Return a step of this run, whichever thread or task it begins in.

        An id that was used before is another execution of the step, as in a loop. The run is started if it was not. See
        ``Recorder.step`` for the arguments.
        """
        if not self.record.registered:  # also one that was resumed, which had started before
            self.start()
        return StepRecording(self, step_id, **options)

    def plan(self, step_id: str, *, name: str | None = None, type: str | None = None) -> Self:
        """List a step as ``pending`` at this place until a step of that id begins."""
        self.record.begin_step(to_utf8_text(step_id), optional_text(name), optional_text(type), planned=True)
        return self

    def skip(self, step_id: str, *, name: str | None = None, type: str | None = None) -> Self:
        """Record a step that is not executed because its condition is false."""
        self.step(step_id, name=name, type=type).start().skip()
        return self

    # Contents.

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def trace_id(self) -> bytes:
        """16 bytes, derived from tenant and id: of the run's own trace, also with ``run_parent="child"``."""
        return self.record.trace_id

    @property
    def status(self) -> str:
        """The run's status in the platform's words."""
        return self.record.status

    def _set(self, member: str, value: Payload) -> Self:
        self.record.set_member(member, value)
        return self

    def suspend(self) -> Self:
        """Make a running run ``suspended``: it waits for an approval or an event, and does not count as stuck."""
        return self._transition("running", "suspended")

    def resume(self) -> Self:
        """Make a suspended run ``running`` again."""
        return self._transition("suspended", "running")

    @contextmanager
    def suspended(self) -> Iterator[Self]:
        """Suspend the run for a block."""
        self.suspend()
        try:
            yield self
        finally:
            self.resume()

    def _transition(self, before: str, after: str) -> Self:
        record = self.record

        def write() -> None:
            if record.status == before:
                record.status = after
                record.timestamp()

        record.change(write, status=True)
        return self

    def document(self) -> Run:
        """Return the current run document. Once the run has ended, it is byte for byte the one decoded from its
        spans."""
        return self.record.document()

    # Delivery and handover.

    def checkpoint(self) -> bytes:
        """Return the run as JSON for ``Recorder.resume``, in this process or another, even hours later.

        Call ``release`` instead when another process is to continue the run: two would contradict each other.
        """
        return checkpoint(self.record)

    def release(self) -> bytes:
        """Return a checkpoint and hand the run over.

        The current state is sent, later calls are ignored, and anything that the resuming process reports supersedes
        it, however late it arrives. In the backend the run keeps its status, ``suspended`` for example, until then.
        """
        self.record.release()
        return checkpoint(self.record)

    def flush(self, timeout: float = 5.0) -> FlushResult:
        """Wait until the receiver has the current state of the run, for ``timeout`` seconds at most. Return whether it
        is delivered, refused or pending."""
        return self._worker.outbox.flush(timeout, self.record)


class StepRecording(_Recording):
    """One execution of a step.

    Made by ``RunRecording.step``, or by ``Recorder.step`` for the run that is current when the step begins; outside any
    run it records nothing, which is counted in ``RecorderReport``. An exception that leaves the block is raised again
    and makes the step failed. Calls after the step has ended change nothing and are counted too.
    """

    def __init__(
        self,
        run: RunRecording | None,
        step_id: str,
        *,
        on_no_run: Callable[[str], None] | None = None,
        name: str | None = None,
        type: str | None = None,
        input: object = UNSET,
        retry: Mapping[str, object] | None = None,
        extra: Mapping[str, object] | None = None,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> None:
        """run: None for the one that is current when the step begins.

        on_no_run: called with the step's id when there is none. For the others see ``Recorder.step``.
        """
        super().__init__(input, capture_input, capture_output)
        self._given_run = run
        self._on_no_run = on_no_run
        self._owner: RunRecording | None = None
        """The run of the step that has begun."""
        self._run: RunRecord | None = None
        self._began_without_run = False
        self._id = to_utf8_text(step_id)
        self._name = optional_text(name)
        self._type = optional_text(type)
        self._retry = retry
        self._extra = members(extra, _KNOWN_STEP_MEMBERS) if extra else b""
        self._step: StepRecord | None = None
        self._attempt: Attempt | None = None
        self._has_failed = False

    def _for_call(self) -> StepRecording:
        step = StepRecording(self._given_run, self._id, on_no_run=self._on_no_run, input=self._input, retry=self._retry)
        step._name, step._type, step._extra = self._name, self._type, self._extra
        return step

    # Beginning and ending.

    def start(self) -> Self:
        """Begin the step without making it current; for engines that begin and end a step in different places.

        A step that has ended begins again, as another execution.
        """
        if self._step is not None and not self._step.has_ended:
            return self
        self._owner = self._given_run or next((span.run for span in active_spans()), None)
        self._step, self._attempt, self._has_failed, self._output_is_set = None, None, False, False
        if self._owner is None:
            self._run = None
            if self._on_no_run is not None and not self._began_without_run:
                self._on_no_run(self._id)
            self._began_without_run = True
            return self
        self._run = self._owner.record
        self._step = self._run.begin_step(self._id, self._name, self._type, self._extra, self._retry)
        if self._input is not UNSET:
            self.set_input(self._input)
        return self

    def end(self, error: object = None) -> None:
        """End the step as completed, or as failed with an exception, a message or an error object. Only the first call
        counts."""
        self._began_without_run = False
        if self._step is None or self._step.has_ended:
            return
        text = None if error is None else self._error_text(error)

        def write(run: RunRecord, step: StepRecord) -> None:
            now = run.timestamp(step.started_at)
            status = "failed" if text or self._has_failed else "completed"
            if self._attempt is not None and self._attempt.ended_at is None:
                self._attempt.ended_at, self._attempt.status = now, status
            if text is not None:
                step.error = text
            elif not self._has_failed:
                step.error = None  # the error of a failed attempt, after which another one succeeded
            step.ended_at, step.status = now, status

        if self._change(write) and error is not None and self._run is not None:
            note_step(error, self._run.id, self._id)

    def _error_text(self, error: object) -> bytes:
        run_id = "" if self._run is None else self._run.id
        return error_text(error, run_id, self._id, code=_error_code(error))

    def _change(self, write: Callable[[RunRecord, StepRecord], None]) -> bool:
        """Apply a change under the lock. Return False when the step records nothing or has ended."""
        run, step = self._run, self._step
        return run is not None and step is not None and run.change(lambda: write(run, step), step)

    def _span(self) -> tuple[RunRecording, bytes] | None:
        return None if self._owner is None or self._step is None else (self._owner, self._step.span_id)

    # Contents.

    @property
    def span_id(self) -> bytes:
        """8 bytes; empty before the step begins."""
        return b"" if self._step is None else self._step.span_id

    @property
    def status(self) -> str:
        """The step's status in the platform's words."""
        return "pending" if self._step is None else self._step.status

    def set_usage(
        self,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        total_tokens: int | None = None,
        model: str | None = None,
        cost_usd: float | None = None,
    ) -> Self:
        """Set what an agent step used: it is written to ``output.usage``, and the output to ``output.result``.

        Another call replaces the usage: to record several calls of a model, pass their sum.
        """
        if total_tokens is None and prompt_tokens is not None and completion_tokens is not None:
            with suppress(Exception):  # a client library may pass values that cannot be added
                total_tokens = prompt_tokens + completion_tokens
        usage = {
            "promptTokens": prompt_tokens,
            "completionTokens": completion_tokens,
            "totalTokens": total_tokens,
            "model": model,
            "estimatedCostUsd": cost_usd,
        }
        return self._set("usage", payload({key: value for key, value in usage.items() if value is not None}))

    def set_child(self, run_id: str) -> Self:
        """Set the run that this step started, in this process or another: it is written to ``output.runId``, and the
        step's span links to it."""
        return self._set("child_run_id", payload(to_utf8_text(run_id)))

    def fail(self, error: object) -> Self:
        """Make the step fail when its block ends, though no exception leaves the block."""
        self._has_failed = True
        return self._set("error", Payload(self._error_text(error)))

    def skip(self) -> Self:
        """End the step as skipped, without times: its condition is false, so it is not executed."""
        self._change(lambda run, step: setattr(step, "status", "skipped"))
        return self

    def _set(self, member: str, value: Payload) -> Self:
        if self._run is not None and self._step is not None:
            self._run.set_member(member, value, self._step)
        return self

    # Attempts.

    @contextmanager
    def attempt(self) -> Iterator[int]:
        """Record one attempt around the code that may fail, and return its number. Spans made inside nest below the
        attempt's span.

        An exception makes the attempt failed and the step ``retrying``, and is raised again. The engine then begins
        another attempt, or lets the exception leave the step.
        """
        owner, step = self._owner, self._step
        attempt = self._begin_attempt()
        try:
            if owner is None or step is None or attempt is None:
                yield 1
            else:
                with active(owner, self, attempt_span_id(step, attempt)):
                    yield attempt.number
        except GeneratorExit:
            raise
        except BaseException as error:
            self._end_attempt("failed", error)
            raise
        self._end_attempt("completed", None)

    def retry(self, error: object = None) -> Self:
        """Record an attempt that failed and will be repeated: the step is ``retrying`` until ``attempt`` begins or the
        step ends. For engines that do not put a block around each attempt."""
        self._end_attempt("failed", error)
        return self

    def _begin_attempt(self) -> Attempt | None:
        def write(run: RunRecord, step: StepRecord) -> None:
            self._attempt = Attempt(len(step.attempts) + 1, run.timestamp(step.started_at))
            step.attempts.append(self._attempt)
            step.attempt, step.status, step.error = self._attempt.number, "running", None

        return self._attempt if self._change(write) else None

    def _end_attempt(self, status: str, error: object) -> None:
        text = None if error is None else self._error_text(error)

        def write(run: RunRecord, step: StepRecord) -> None:
            now = run.timestamp(step.started_at)
            attempt = self._attempt
            if attempt is None or attempt.ended_at is not None:
                # Its start was not recorded: it began with the step, or when the attempt before it ended.
                started_at = step.attempts[-1].ended_at if step.attempts else step.started_at
                attempt = Attempt(len(step.attempts) + 1, now if started_at is None else started_at)
                self._attempt = attempt
                step.attempts.append(attempt)
            attempt.ended_at, attempt.status = max(now, attempt.started_at), status
            step.attempt = attempt.number
            if status == "failed":
                step.status = "retrying"
                step.error = attempt.error = text

        self._change(write)


def _error_code(error: object) -> str:
    """Return the code of an exception that is no failure of the step itself, else ""."""
    if issubclass(type(error), asyncio.CancelledError):
        return "CANCELLED"
    return "INTERRUPTED" if issubclass(type(error), KeyboardInterrupt) else ""
