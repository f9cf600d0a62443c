"""Into called services and out of callers: W3C trace context, and the run's id as baggage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, get_current
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runspan.recorder.scope import RUN_BAGGAGE

_TRACE: Final = TraceContextTextMapPropagator()
_BAGGAGE: Final = W3CBaggagePropagator()


class Caller(NamedTuple):
    """Who started a run. traceparent: in W3C form, or "". run_id: of the run that called, or ""."""

    traceparent: str = ""
    run_id: str = ""


def outgoing(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers with ``traceparent`` and ``baggage`` of what is current, for a call to another service."""
    carrier = dict(headers or {})
    _TRACE.inject(carrier)
    _BAGGAGE.inject(carrier)
    return carrier


def caller_of(headers: Mapping[str, str] | None, trace_id: bytes) -> Caller:
    """Who called, by the headers of a request, or without any by what is current. trace_id: of the run that begins.

    A caller inside the run's own trace is none: the run span never links into its own trace.
    """
    context = get_current() if headers is None else _extracted(headers)
    run_id = baggage.get_baggage(RUN_BAGGAGE, context)
    found = run_id if isinstance(run_id, str) else ""
    span = get_current_span(context).get_span_context()
    if not span.is_valid or span.trace_id == int.from_bytes(trace_id, "big"):
        return Caller("", found)
    return Caller(f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}", found)


def _extracted(headers: Mapping[str, str]) -> Context:
    lowered = {key.lower(): value for key, value in headers.items()}
    return _BAGGAGE.extract(lowered, _TRACE.extract(lowered, Context()))
