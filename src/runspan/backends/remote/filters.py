"""Filters of lists that a run's list item does not decide, for every backend that has spans only; no I/O."""

from __future__ import annotations

from collections.abc import Iterable

from runspan.codec.decode import RunSummary, verify_run
from runspan.codec.facts import run_facts
from runspan.codec.full_text import find_text
from runspan.contracts import RunQuery, unproved_note
from runspan.errors import NotFound, QueryUnsupported, TraceIncomplete
from runspan.model.document import Run
from runspan.model.span import Span


def check_order(query: RunQuery, backend: str) -> None:
    """Raise QueryUnsupported if a list is not sorted by the start of the runs. backend: its name."""
    if query.order != "start":
        raise QueryUnsupported(
            where=backend,
            expected="a list that is sorted by start",
            got=f"sort={query.order}",
            hint=f"this backend has no index by {query.order}: leave out sort"
            + (", and name a shortest duration" if query.order == "duration" else ""),
        )


def needs_document(query: RunQuery) -> bool:
    """Return whether the list item of a run does not show if the run is in the list."""
    return query.model is not None or query.step_type is not None or query.text is not None


def matches_document(query: RunQuery, run: Run) -> bool:
    """Return whether a document meets the filters that its list item does not decide."""
    if query.model is not None or query.step_type is not None:
        facts = run_facts(run)
        if query.model is not None and all(use.model != query.model for use in facts.models):
            return False
        if query.step_type is not None and all(step.type != query.step_type for step in facts.steps):
            return False
    return query.text is None or find_text(run, query.text) is not None


def matches_trace(query: RunQuery, item: RunSummary, spans: Iterable[Span]) -> tuple[bool, str]:
    """Return whether the document of a list item meets the filters, and a note if its spans do not prove it.

    Without the proof the run is left out.
    """
    try:
        verified = verify_run(spans)
    except TraceIncomplete as error:
        return False, unproved_note(item.run_id, error.missing)
    except NotFound as error:
        return False, unproved_note(item.run_id, (error.message,))
    if verified.revision != item.revision:
        return False, unproved_note(item.run_id, verified.incomplete)
    return matches_document(query, verified.run), ""
