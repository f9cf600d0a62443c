"""What is current while a run or step is at work: OpenTelemetry's context, below which other people's spans nest.

Into called services and out of callers: W3C trace context, and the run's id as baggage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple, Self

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, create_key, get_current, set_value
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runspan.recorder.state import RunSession

RUN_BAGGAGE: Final = "runspan.run.id"
"""The baggage entry that carries the run's id into called services."""

_SCOPE: Final = create_key("runspan-scope")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class ActiveSpan:
    """A run, or a step or attempt of it, that is current. recording: what tells of it. previous: the context before."""

    __slots__ = ("context", "left", "live", "previous", "recording")

    def __init__(self, live: RunSession, recording: object, previous: Context) -> None:
        self.live = live
        self.recording = recording
        self.previous = previous
        self.context = previous
        self.left = False


def activate(live: RunSession, recording: object, span_id: bytes) -> ActiveSpan:
    """Makes a span of the run current in this thread or task. The span is not written by whoever is inside it."""
    previous = get_current()
    scope = ActiveSpan(live, recording, previous)
    span = SpanContext(int.from_bytes(live.record.trace_id, "big"), int.from_bytes(span_id, "big"), False, _SAMPLED)
    context = set_span_in_context(NonRecordingSpan(span), previous)
    around = previous.get(_SCOPE)
    if not (isinstance(around, ActiveSpan) and around.live is live):
        context = baggage.set_baggage(RUN_BAGGAGE, live.record.id, context)
    scope.context = set_value(_SCOPE, scope, context)
    attach(scope.context)
    return scope


def deactivate(scope: ActiveSpan) -> None:
    """Makes current again what was before.

    Generators, and blocks that end in another order than they began, leave scopes while another one is current, or in
    another task: then nothing changes there, and the last one that ends takes the ended ones below it away.
    """
    scope.left = True
    context = found = get_current()
    while isinstance(top := context.get(_SCOPE), ActiveSpan) and top.left and context is top.context:
        context = top.previous
    if context is not found:
        attach(context)


@contextmanager
def active(live: RunSession, recording: object, span_id: bytes) -> Iterator[None]:
    """Current for a block, whatever begins and ends elsewhere."""
    scope = activate(live, recording, span_id)
    try:
        yield
    finally:
        deactivate(scope)


def active_spans() -> Iterator[ActiveSpan]:
    """The scopes of this thread or task, the innermost first."""
    context = get_current()
    while isinstance(found := context.get(_SCOPE), ActiveSpan):
        yield found
        context = found.previous


class SyncAsyncContextManager:
    """A context manager that is an asynchronous one too: beginning and ending never wait."""

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


_TRACE: Final = TraceContextTextMapPropagator()
_BAGGAGE: Final = W3CBaggagePropagator()


class CallerContext(NamedTuple):
    """Who started a run. traceparent: in W3C form, or "". run_id: of the run that called, or ""."""

    traceparent: str = ""
    run_id: str = ""


def outgoing_headers(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers with ``traceparent`` and ``baggage`` of what is current, for a call to another service."""
    carrier = dict(headers or {})
    _TRACE.inject(carrier)
    _BAGGAGE.inject(carrier)
    return carrier


def caller_of(headers: Mapping[str, str] | None, trace_id: bytes) -> CallerContext:
    """Who called, by the headers of a request, or without any by what is current. trace_id: of the run that begins.

    A caller inside the run's own trace is none: the run span never links into its own trace.
    """
    context = get_current() if headers is None else _extracted(headers)
    run_id = baggage.get_baggage(RUN_BAGGAGE, context)
    found = run_id if isinstance(run_id, str) else ""
    span = get_current_span(context).get_span_context()
    if not span.is_valid or span.trace_id == int.from_bytes(trace_id, "big"):
        return CallerContext("", found)
    return CallerContext(f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}", found)


def _extracted(headers: Mapping[str, str]) -> Context:
    lowered = {key.lower(): value for key, value in headers.items()}
    return _BAGGAGE.extract(lowered, _TRACE.extract(lowered, Context()))
