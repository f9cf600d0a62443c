"""What is current while a run or step is at work: OpenTelemetry's context, below which other people's spans nest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from opentelemetry import baggage
from opentelemetry.context import Context, attach, create_key, get_current, set_value
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from runspan.recorder.live import LiveRun

RUN_BAGGAGE: Final = "runspan.run.id"
"""The baggage entry that carries the run's id into called services."""

_SCOPE: Final = create_key("runspan-scope")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class Scope:
    """A run, or a step or attempt of it, that is current. recording: what tells of it. previous: the context before."""

    __slots__ = ("context", "left", "live", "previous", "recording")

    def __init__(self, live: LiveRun, recording: object, previous: Context) -> None:
        self.live = live
        self.recording = recording
        self.previous = previous
        self.context = previous
        self.left = False


def enter(live: LiveRun, recording: object, span_id: bytes) -> Scope:
    """Makes a span of the run current in this thread or task. The span is not written by whoever is inside it."""
    previous = get_current()
    scope = Scope(live, recording, previous)
    span = SpanContext(int.from_bytes(live.record.trace_id, "big"), int.from_bytes(span_id, "big"), False, _SAMPLED)
    context = set_span_in_context(NonRecordingSpan(span), previous)
    around = previous.get(_SCOPE)
    if not (isinstance(around, Scope) and around.live is live):
        context = baggage.set_baggage(RUN_BAGGAGE, live.record.id, context)
    scope.context = set_value(_SCOPE, scope, context)
    attach(scope.context)
    return scope


def leave(scope: Scope) -> None:
    """Makes current again what was before.

    Generators, and blocks that end in another order than they began, leave scopes while another one is current, or in
    another task: then nothing changes there, and the last one that ends takes the ended ones below it away.
    """
    scope.left = True
    context = found = get_current()
    while isinstance(top := context.get(_SCOPE), Scope) and top.left and context is top.context:
        context = top.previous
    if context is not found:
        attach(context)


@contextmanager
def inside(live: LiveRun, recording: object, span_id: bytes) -> Iterator[None]:
    """Current for a block, whatever begins and ends elsewhere."""
    scope = enter(live, recording, span_id)
    try:
        yield
    finally:
        leave(scope)


def scopes() -> Iterator[Scope]:
    """The scopes of this thread or task, the innermost first."""
    context = get_current()
    while isinstance(found := context.get(_SCOPE), Scope):
        yield found
        context = found.previous


class Block:
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
