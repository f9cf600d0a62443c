"""A run's document from spans that a backend hands over, read again while the backend has a short gap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from runspan.contracts import Document
from runspan.decode import Decoded, read_run
from runspan.errors import NotFound, TraceIncomplete
from runspan.ids import run_ids
from runspan.span import Span

PAUSES: Final = (0.1, 0.1, 0.1)
"""Seconds before a trace that was not found is asked for again."""
LONG_PAUSES: Final = (0.1, 0.3, 0.5)
"""Seconds before a trace that was found incomplete is asked for again: its other spans may be on their way."""

Sleep = Callable[[float], None]


def trace_id_of(run_id: str, tenant: str) -> bytes:
    """The trace of a run. NotFound when no run can have this id."""
    try:
        return run_ids(run_id, tenant).trace_id
    except UnicodeEncodeError:
        raise NotFound("no such run", where=f"run {run_id!a}") from None


def read_again(fetch: Callable[[], Sequence[Span]], sleep: Sleep, *, patient: bool) -> Decoded:
    """The run of a trace; NotFound or TraceIncomplete only after it was asked for again.

    patient: whether an incomplete trace is waited for too.
    """
    gaps, waits = iter(PAUSES), iter(LONG_PAUSES if patient else ())
    while True:
        found: Decoded | None = None
        try:
            found = read_run(fetch())
            if not found.incomplete:
                return found
            pause = next(waits, None)
            if pause is None:
                return found
        except NotFound:
            pause = next(gaps, None)
            if pause is None:
                raise
        except TraceIncomplete:
            pause = next(waits, None)
            if pause is None:
                raise
        sleep(pause)


def document_of(decoded: Decoded) -> Document:
    """The document of a run as read."""
    return Document(decoded.run.text, decoded.incomplete)
