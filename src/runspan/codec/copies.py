"""Copies of a run's spans for the trace of the run's caller, so that it shows one waterfall; no I/O.

The run itself stays in its own trace, from which it is read by its id and proved. A copy has no role, so no reader
takes it for a part of a run, and two runs in one trace cannot be confused. It carries what a waterfall shows, and a
link to the span with everything else. Counts such as tokens and cost are not on it: they are summed over spans.
"""

from __future__ import annotations

from typing import Final

from runspan.codec import fields, semconv
from runspan.model.span import INTERNAL, Link, Span, child_span_id

_ROLES: Final = frozenset({fields.ROLE_RUN, fields.ROLE_STEP, fields.ROLE_ATTEMPT})
_KEYS: Final = frozenset(
    {
        fields.RUN_ID,
        fields.WORKFLOW_ID,
        semconv.ERROR_TYPE,
        semconv.ATTEMPT_NUMBER,
        *(field.key for field in fields.STEP_TABLE.labels if field.member in ("id", "name", "type")),
    }
)
"""The attributes of a copy. None of them is what lists search for."""


def copy_span_id(span_id: bytes) -> bytes:
    """Return the id of the copy of a span: not the same, since Jaeger's pages look for the target of a link by its span
    id in the trace that is shown."""
    return child_span_id(span_id, "copy", 1)


def copy_for_caller(span: Span, caller: Link) -> Span | None:
    """Return the copy of a run, step or attempt span for the trace of its run's caller; None for any other span.

    The run's copy is a child of the caller's span.
    """
    attributes = span.attributes()
    role = attributes.get(fields.ROLE)
    if role not in _ROLES:
        return None
    is_run = role == fields.ROLE_RUN
    return Span(
        trace_id=caller.trace_id,
        span_id=copy_span_id(span.span_id),
        parent_id=caller.span_id if is_run else copy_span_id(span.parent_id),
        name=f"{span.name} (copy)" if is_run else span.name,
        kind=INTERNAL,
        start=span.start,
        end=span.end,
        status=span.status,
        message=span.message,
        shared=(),
        own=[(key, value) for key, value in attributes.items() if key in _KEYS],
        events=tuple([event for event in span.events if event.name == semconv.EXCEPTION_EVENT]),
        links=(Link(span.trace_id, span.span_id, (("runspan.link", "original"),)),),
        scope=fields.SCOPE_COPY,
    )
