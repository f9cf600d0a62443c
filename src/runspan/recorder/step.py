"""``StepRecording``: one execution of one step, told by the code that does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec import UNSET, UnsetType

from runspan.model.document import Step
from runspan.recorder.context import ActiveSpan, SyncAsyncContextManager, activate, active, active_spans, deactivate
from runspan.recorder.decorators import record_calls
from runspan.recorder.serialize import error_text, members, payload, to_utf8_text
from runspan.recorder.state import Attempt, RunRecord, RunSession, StepRecord, attempt_span_id

F = TypeVar("F", bound=Callable[..., Any])

_KNOWN = {*Step.__struct_encode_fields__, "attempts"}


class StepRecording(SyncAsyncContextManager):
    """A step of a run: a context manager, with or without ``async``, and a decorator of functions.

    Made by ``Recorder.step``, for the run that is current when it begins (outside any run it records nothing), or by
    ``RunRecording.step``. Every method may be called from any thread. What is told after the step has ended changes
    nothing, and is counted.

    An exception that leaves the block makes the step failed and goes on; nothing of telemetry is ever raised.
    """

    def __init__(
        self,
        live: RunSession | None,
        step_id: str,
        *,
        name: str | None = None,
        type: str | None = None,
        input: object = UNSET,
        retry: Mapping[str, object] | None = None,
        extra: Mapping[str, object] | None = None,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> None:
        """See ``Recorder.step``."""
        self._given = live
        self._live = live
        self._id = to_utf8_text(step_id)
        self._name: str | UnsetType = UNSET if name is None else to_utf8_text(name)
        self._type: str | UnsetType = UNSET if type is None else to_utf8_text(type)
        self._input = input
        self._retry = retry
        self._extra = members(extra, _KNOWN) if extra else b""
        self._capture = (capture_input, capture_output)
        self._record: StepRecord | None = None
        self._scope: ActiveSpan | None = None
        self._attempt: Attempt | None = None
        self._failed = False
        self._output_told = False

    def __call__(self, function: F) -> F:
        """Decorates a function, coroutine function or generator: each call is a step of its own.

        Its arguments become the input and what it returns the output, unless told otherwise or told not to. The step
        of a generator lasts until it ends, and is current while the generator itself is at work.
        """
        takes_input, takes_output = self._capture
        return record_calls(function, self._again, takes_input and self._input is UNSET, takes_output)

    def _again(self) -> StepRecording:
        made = StepRecording(self._given, self._id, input=self._input, retry=self._retry)
        made._name, made._type, made._extra = self._name, self._type, self._extra
        return made

    # Begin and end.

    def start(self) -> Self:
        """Begins the step without making it current; for engines that begin and end a step in different places. After
        its end it begins once more, another execution."""
        if self._record is not None and not self._record.finished:
            return self
        self._live = self._given if self._given is not None else next((scope.live for scope in active_spans()), None)
        self._record, self._attempt, self._failed, self._output_told = None, None, False, False
        if self._live is None:
            return self
        self._record = self._live.begin_step(self._id, self._name, self._type, self._extra, self._retry)
        if self._input is not UNSET:
            self.set_input(self._input)
        return self

    def end(self, error: object = None) -> None:
        """Ends the step: completed, or failed with an exception, a message or an error object. Only once."""
        live, step = self._live, self._record
        if live is None or step is None or step.finished:
            return
        text = None if error is None else error_text(error, step.id, _code_of(error))

        def write(_: RunRecord) -> None:
            now = live.stamp(step.started)
            if self._attempt is not None and self._attempt.ended is None:
                self._attempt.ended = now
                self._attempt.status = "failed" if text or self._failed else "completed"
            if text is not None:
                step.error = text
            elif not self._failed:
                step.error = None  # of an attempt that failed and was made good
            step.ended = now
            step.status = "failed" if text or self._failed else "completed"

        live.change(write, step)

    def __enter__(self) -> Self:
        self.start()
        if self._live is not None and self._record is not None:
            self._scope = activate(self._live, self, self._record.span_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is not None:
            deactivate(self._scope)
            self._scope = None
        # A generator that is closed early was not wanted further; nothing failed.
        self.end(None if isinstance(error, GeneratorExit) else error)

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Makes a step that was begun current for a block: in the thread that works on it, say."""
        if self._live is None or self._record is None:
            yield self
            return
        with active(self._live, self, self._record.span_id):
            yield self

    # What is told of it.

    @property
    def span_id(self) -> bytes:
        """8 bytes; empty before it begins."""
        return b"" if self._record is None else self._record.span_id

    @property
    def status(self) -> str:
        """The platform's word for where the step is."""
        return "pending" if self._record is None else self._record.status

    def set_input(self, value: object) -> Self:
        """The step's input, as it is now: what changes in the value later does not change the document."""
        made = payload(value)
        return self._set_member("input", made.text, made.exact)

    def set_output(self, value: object) -> Self:
        """The step's output, as it is now. While the step runs, it may be told again."""
        made = payload(value)
        self._output_told = True
        return self._set_member("output", made, made.exact)

    def returned(self, value: object) -> None:
        """The output, unless it was told already; for decorators."""
        if not self._output_told:
            self.set_output(value)

    def set_usage(
        self,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        total_tokens: int | None = None,
        model: str | None = None,
        cost_usd: float | None = None,
    ) -> Self:
        """What an agent step used; it stands in the output as ``usage``, and the output itself as ``result``.

        Told again, it replaces what was told: sum up over several calls of a model yourself.
        """
        if total_tokens is None and prompt_tokens is not None and completion_tokens is not None:
            with suppress(Exception):  # what a client library calls a number may be none
                total_tokens = prompt_tokens + completion_tokens
        told = {
            "promptTokens": prompt_tokens,
            "completionTokens": completion_tokens,
            "totalTokens": total_tokens,
            "model": model,
            "estimatedCostUsd": cost_usd,
        }
        made = payload({key: value for key, value in told.items() if value is not None})
        return self._set_member("usage", made.text, made.exact)

    def set_child(self, run_id: str) -> Self:
        """The run that this step started, in this process or another: ``runId`` in the output, and a link to it."""
        return self._set_member("child_run_id", payload(to_utf8_text(run_id)).text)

    def fail(self, error: object) -> Self:
        """The step fails, though no exception leaves its block; it ends with the block."""
        self._failed = True
        return self._set_member("error", error_text(error, self._id, _code_of(error)))

    def skip(self) -> Self:
        """The condition of the step is false, so it is not executed: it ends at once, and has no times."""
        return self._set_member("status", "skipped")

    # Attempts.

    @contextmanager
    def attempt(self) -> Iterator[int]:
        """One attempt, around what may fail; gives its number. Spans made inside nest below the attempt's span.

        An exception makes the attempt failed and the step ``retrying``, and goes on to the engine, which decides: it
        begins another attempt, or lets the exception leave the step.
        """
        live, step = self._live, self._record
        attempt = self._begin_attempt()
        try:
            if live is None or step is None or attempt is None:
                yield 1
            else:
                with active(live, self, attempt_span_id(step, attempt)):
                    yield attempt.position
        except GeneratorExit:
            raise
        except BaseException as error:
            self._end_attempt("failed", error)
            raise
        self._end_attempt("completed", None)

    def retry(self, error: object = None) -> Self:
        """What was tried has failed and will be tried again: the step is ``retrying`` until ``attempt`` begins, or
        until it ends. For engines that do not put a block around each attempt."""
        self._end_attempt("failed", error)
        return self

    def _begin_attempt(self) -> Attempt | None:
        live, step = self._live, self._record
        if live is None or step is None:
            return None

        def write(_: RunRecord) -> None:
            self._attempt = Attempt(len(step.attempts) + 1, live.stamp(step.started))
            step.attempts.append(self._attempt)
            step.attempt, step.status, step.error = self._attempt.position, "running", None

        return self._attempt if live.change(write, step) else None

    def _end_attempt(self, status: str, error: object) -> None:
        live, step = self._live, self._record
        if live is None or step is None:
            return
        text = None if error is None else error_text(error, step.id, _code_of(error))

        def write(_: RunRecord) -> None:
            now = live.stamp(step.started)
            attempt = self._attempt
            if attempt is None or attempt.ended is not None:
                # Nobody said that it began: it began with the step, or when the one before it ended.
                begun = step.attempts[-1].ended if step.attempts else step.started
                attempt = self._attempt = Attempt(len(step.attempts) + 1, now if begun is None else begun)
                step.attempts.append(attempt)
            attempt.ended, attempt.status = max(now, attempt.started), status
            step.attempt = attempt.position
            if status == "failed":
                step.status = "retrying"
                step.error = attempt.error = text

        live.change(write, step)

    def _set_member(self, member: str, value: Any, exact: bool = True) -> Self:
        live, step = self._live, self._record
        if live is not None and step is not None:
            if not exact:
                live.counts.add("inexact")
            live.change(lambda _: setattr(step, member, value), step)
        return self


def _code_of(error: object) -> str:
    """The code of what is no failure of the step's own; "" for any other error."""
    if issubclass(type(error), asyncio.CancelledError):
        return "CANCELLED"
    return "INTERRUPTED" if issubclass(type(error), KeyboardInterrupt) else ""
