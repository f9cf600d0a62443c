"""The run and step that are current in OpenTelemetry's context, and how they propagate to and from other services.

While a run, a step or an attempt is active, its span is the current one, so that spans of other instrumentation nest
below it. Other services get W3C trace context, and the run's id as baggage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, create_key, get_current, set_value
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runspan.errors import ConfigError

if TYPE_CHECKING:
    from runspan.recorder.recording import RunRecording

P = ParamSpec("P")
T = TypeVar("T")

RUN_ID_BAGGAGE: Final = "runspan.run.id"
"""The baggage entry that carries the run's id to other services."""

_ACTIVE_SPAN: Final = create_key("runspan-active-span")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_PROPAGATOR: Final = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])


@dataclass(slots=True, eq=False)
class ActiveSpan:
    """The span of a run, a step or an attempt while it is current."""

    run: RunRecording
    recording: object
    """The ``RunRecording`` or ``StepRecording`` that made it active."""
    previous: Context
    """The context before."""
    context: Context
    """The context in which it is current."""
    has_ended: bool = False


def activate(run: RunRecording, recording: object, span_id: bytes) -> ActiveSpan:
    """Make a span of the run current in this thread or task.

    Only its ids are in the context: the span itself is written by the recorder when it has ended.
    """
    previous = get_current()
    active_span = ActiveSpan(run, recording, previous, previous)
    trace_id, parent_id = run.record.context_ids(span_id)
    span_context = SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(parent_id, "big"), False, _SAMPLED)
    span = NonRecordingSpan(span_context)
    context = set_span_in_context(span, previous)
    outer = previous.get(_ACTIVE_SPAN)
    if not (isinstance(outer, ActiveSpan) and outer.run is run):
        context = baggage.set_baggage(RUN_ID_BAGGAGE, run.id, context)
    active_span.context = set_value(_ACTIVE_SPAN, active_span, context)
    attach(active_span.context)
    return active_span


def deactivate(active_span: ActiveSpan) -> None:
    """Restore the context before.

    Generators, and blocks that end in another order than they began, end while another span is current, or in another
    task. The context stays as it is then, and the last one to end removes the ended ones below it.
    """
    active_span.has_ended = True
    current = context = get_current()
    while isinstance(top := context.get(_ACTIVE_SPAN), ActiveSpan) and top.has_ended and context is top.context:
        context = top.previous
    if context is not current:
        attach(context)


@contextmanager
def active(run: RunRecording, recording: object, span_id: bytes) -> Iterator[None]:
    """Make a span of the run current for a block."""
    active_span = activate(run, recording, span_id)
    try:
        yield
    finally:
        deactivate(active_span)


def active_spans() -> Iterator[ActiveSpan]:
    """Return the active spans of this thread or task, innermost first."""
    context = get_current()
    while isinstance(active_span := context.get(_ACTIVE_SPAN), ActiveSpan):
        yield active_span
        context = active_span.previous


class _PropagatingExecutor(Executor):
    """See ``propagate``."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        run: Callable[..., T] = copy_context().run
        return self._executor.submit(run, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


def propagate(executor: Executor) -> Executor:
    """Return an executor that runs each call in a copy of its submitter's context, in which the run and the step are
    current. It passes the calls on to ``executor``, and shuts it down with itself.

    The copy has every context variable of the submitter. ConfigError when the executor runs its calls in other
    processes, to which no context can be sent.
    """
    if isinstance(executor, ProcessPoolExecutor):
        raise ConfigError(
            where="propagate",
            expected="an executor whose calls run in threads of this process",
            got=type(executor).__name__,
            hint="pass recorder.headers() to the call, and begin a run of its own there with headers=",
        )
    return _PropagatingExecutor(executor)


def outgoing_headers(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers with ``traceparent`` and ``baggage`` of the current context, for a call to another service."""
    carrier = dict(headers or {})
    _PROPAGATOR.inject(carrier)
    return carrier


def caller_of(headers: Mapping[str, str] | None, trace_id: bytes) -> tuple[str, str]:
    """Return what started a run, according to the headers of a request, or without any to the current context: the
    caller's span in W3C form and the run that called, each "" when there is none.

    trace_id: of the run that begins. A span of the same trace is no caller: no run span links into its own trace.
    """
    context = get_current()
    if headers is not None:
        lowercase = {key.lower(): value for key, value in headers.items()}
        context = _PROPAGATOR.extract(lowercase, Context())
    value = baggage.get_baggage(RUN_ID_BAGGAGE, context)
    run_id = value if isinstance(value, str) else ""
    span = get_current_span(context).get_span_context()
    if not span.is_valid or span.trace_id == int.from_bytes(trace_id, "big"):
        return "", run_id
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}", run_id
