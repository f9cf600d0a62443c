"""``RunRecording``: one run of a workflow, told by the engine that executes it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from msgspec import UNSET

from runspan.model.document import Envelope
from runspan.model.run import Run
from runspan.recorder.checkpoint import checkpoint
from runspan.recorder.context import ActiveSpan, SyncAsyncContextManager, activate, active, deactivate
from runspan.recorder.decorators import record_calls
from runspan.recorder.serialize import error_text, payload, to_utf8_text
from runspan.recorder.state import RunRecord, RunSession
from runspan.recorder.step import StepRecording

F = TypeVar("F", bound=Callable[..., Any])

KNOWN: Final = {*Envelope.__struct_encode_fields__, "parentRunId", "traceparent"}
_ENDED_FROM_OUTSIDE: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)


class RunOwner(Protocol):
    """What a run asks of the recorder that made it."""

    def begin(self, live: RunSession) -> None:
        """The run exists from now on."""
        ...

    def wait_for(self, live: RunSession, timeout: float) -> bool:
        """Waits until the receiver has the run as it stands."""
        ...


class RunRecording(SyncAsyncContextManager):
    """A run: a context manager, with or without ``async``, and a decorator of functions. Made by ``Recorder.run``.

    An exception that leaves the block makes the run failed, or cancelled when it is a cancellation, Ctrl-C or
    ``SystemExit``, and goes on; nothing of telemetry is ever raised. Every method may be called from any thread. What
    is told after the run has ended changes nothing, and is counted.
    """

    def __init__(
        self,
        owner: RunOwner,
        make: Callable[[], RunSession],
        *,
        input: object = UNSET,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> None:
        """make: the run, when it begins; a decorator makes another for each call."""
        self._owner = owner
        self._make = make
        self._input = input
        self._capture = (capture_input, capture_output)
        self._made: RunSession | None = None
        self._making = threading.RLock()
        self._scope: ActiveSpan | None = None
        self._output_told = False

    def __call__(self, function: F) -> F:
        """Decorates a function, coroutine function or generator: each call is a run of its own."""
        takes_input, takes_output = self._capture
        return record_calls(function, self._again, takes_input and self._input is UNSET, takes_output)

    def _again(self) -> RunRecording:
        return RunRecording(self._owner, self._make, input=self._input)

    # Begin and end.

    @property
    def live(self) -> RunSession:
        """The run itself; it is ``pending`` when first asked for."""
        if self._made is not None:
            return self._made
        with self._making:
            if self._made is None:
                made = self._make()
                if self._input is not UNSET:
                    _tell(made, "input", self._input)
                self._made = self._made or made  # a signal's handler that wants it may have been quicker
            return self._made

    def queue(self) -> Self:
        """Tells of the run while it still waits for its start: it is seen as ``pending``."""
        self._owner.begin(self.live)
        return self

    def start(self) -> Self:
        """Begins the run without making it current; for engines that begin and end it in different places."""
        live = self.live

        def write(record: RunRecord) -> None:
            now = live.stamp(record.created)
            record.started = now if record.started is None else record.started
            if record.status == "pending":
                record.status = "running"

        if live.record.status == "pending" or live.record.started is None:
            live.change(write, status=True)
        self._owner.begin(live)
        return self

    def end(self, error: object = None) -> None:
        """Ends the run: completed, or failed with an exception, a message or an error object. Only once."""
        self._end("completed" if error is None else "failed", error)

    def cancel(self, reason: object = None) -> None:
        """Ends the run as cancelled."""
        self._end("cancelled", reason)

    def time_out(self, reason: object = None) -> None:
        """Ends the run as timed out: it took longer than it may."""
        self._end("timed_out", reason, "TIMEOUT")

    def _end(self, status: str, error: object, code: str = "") -> None:
        live = self.live
        if live.record.ended_already:
            return
        if live.record.started is None:
            self._owner.begin(live)  # cancelled while it was queued
        text = None if error is None else error_text(error, None, code)

        def write(record: RunRecord) -> None:
            record.ended = live.stamp(max([record.started or record.created, *[s.ended or 0 for s in record.steps]]))
            record.status = status
            record.error = text or record.error

        live.change(write, status=True)

    def __enter__(self) -> Self:
        self.start()
        self._scope = activate(self.live, self, self.live.record.root_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is not None:
            deactivate(self._scope)
            self._scope = None
        if error is None or isinstance(error, GeneratorExit):
            self.end()
        elif isinstance(error, _ENDED_FROM_OUTSIDE):
            self.cancel(error)
        else:
            self.end(error)

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Makes a run that was begun current for a block: in a thread that works on it, say. It ends elsewhere."""
        with active(self.live, self, self.live.record.root_id):
            yield self

    # Steps.

    def step(
        self,
        step_id: str,
        *,
        name: str | None = None,
        type: str | None = None,
        input: object = UNSET,
        retry: Mapping[str, object] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> StepRecording:
        """A step of this run, whichever thread or task it begins in. An id that was there already is executed once
        more, as in a loop. It starts a run that was not started. See ``Recorder.step`` for the arguments."""
        if self.live.record.started is None:
            self.start()
        return StepRecording(self.live, step_id, name=name, type=type, input=input, retry=retry, extra=extra)

    def plan(self, step_id: str, *, name: str | None = None, type: str | None = None) -> Self:
        """A step that is to come: it is listed as ``pending`` at this place until a step of that id begins."""
        self.live.begin_step(
            to_utf8_text(step_id),
            UNSET if name is None else to_utf8_text(name),
            UNSET if type is None else to_utf8_text(type),
            planned=True,
        )
        return self

    def skip(self, step_id: str, *, name: str | None = None, type: str | None = None) -> Self:
        """A step whose condition is false: it is not executed."""
        self.step(step_id, name=name, type=type).start().skip()
        return self

    # What is told of it.

    @property
    def id(self) -> str:
        return self.live.record.id

    @property
    def trace_id(self) -> bytes:
        """16 bytes; it follows from tenant and id."""
        return self.live.record.trace_id

    @property
    def status(self) -> str:
        """The platform's word for where the run is."""
        return self.live.record.status

    def set_input(self, value: object) -> Self:
        """The run's input, as it is now: what changes in the value later does not change the document."""
        return self._set_member("input", value)

    def set_output(self, value: object) -> Self:
        """The run's output, as it is now."""
        self._output_told = True
        return self._set_member("output", value)

    def returned(self, value: object) -> None:
        """The output, unless it was told already; for decorators."""
        if not self._output_told:
            self.set_output(value)

    def suspend(self) -> Self:
        """The run waits for an approval or an event: it is ``suspended``, and nobody takes it for stuck."""
        return self._transition("running", "suspended")

    def resume(self) -> Self:
        """It goes on."""
        return self._transition("suspended", "running")

    @contextmanager
    def suspended(self) -> Iterator[Self]:
        """Suspended for a block."""
        self.suspend()
        try:
            yield self
        finally:
            self.resume()

    def document(self) -> Run:
        """The run document as it stands. Once the run has ended, it is byte for byte the one that its spans give."""
        return self.live.record.document()

    def checkpoint(self) -> bytes:
        """The run as JSON for ``Recorder.resume``, in this process or another, hours later; it holds the document.

        Call ``release`` when it is not this process that goes on with it: two would contradict each other.
        """
        return checkpoint(self.live.record)

    def release(self) -> bytes:
        """The ``checkpoint``, and the run is let go here: it is sent as it stands, and what is told of it from now on
        changes nothing. In the backend it stays as it is, suspended, say, until it is resumed. It ranks below all that
        whoever resumes it tells, however late it arrives there."""
        live = self.live
        with live.record.lock:
            let_go = not (live.abandoned or live.record.ended_already)
            if let_go:
                live.record.release(live.clock.now())
                live.abandoned = True
            made = checkpoint(live.record)
        if let_go:
            live.on_change(live, True)
        else:
            live.counts.add("late")
        return made

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until the receiver has the run as it stands; False when it has not after ``timeout`` seconds."""
        return self._owner.wait_for(self.live, timeout)

    def _set_member(self, member: str, value: object) -> Self:
        _tell(self.live, member, value)
        return self

    def _transition(self, before: str, after: str) -> Self:
        def write(record: RunRecord) -> None:
            if record.status == before:
                record.status = after
                self.live.stamp()

        self.live.change(write, status=True)
        return self


def _tell(live: RunSession, member: str, value: object) -> None:
    made = payload(value)
    if not made.exact:
        live.counts.add("inexact")
    live.change(lambda record: setattr(record, member, made.text))
