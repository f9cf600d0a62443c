"""Filters of lists that a run's list item does not decide, for every backend that has spans only; no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from runspan.codec import full_text
from runspan.codec.decode import RunSummary, verify_run
from runspan.codec.facts import model_names, step_types
from runspan.contracts import RunQuery, unproved_note
from runspan.errors import QueryUnsupported, TraceIncomplete
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


def needs_document(query: RunQuery, item: RunSummary) -> bool:
    """Return whether the list item of a run that matches does not show if the run is in the list."""
    return (
        query.text is not None
        or (query.model is not None and item.models is None)
        or (query.step_type is not None and item.step_types is None)
    )


class Match(NamedTuple):
    """Whether a document meets the filters that its list item does not decide."""

    is_match: bool
    text: full_text.Match | None = None
    """Where it contains the text of the query."""
    unproved: str = ""
    """Why that is unknown, as a line of ``Page.partial``; the run is left out."""


def match_document(query: RunQuery, run: Run) -> Match:
    """Return whether a document meets the filters of ``needs_document``."""
    models = None if query.model is None else model_names(run.steps)
    types = None if query.step_type is None else step_types(run.steps)
    if not query.matches_labels(models, types):
        return Match(False)
    if query.text is None:
        return Match(True)
    found = full_text.find_text(run, query.text)
    return Match(found is not None, found)


def match_trace(query: RunQuery, item: RunSummary, spans: Iterable[Span]) -> Match:
    """Return whether the document of a list item, which its spans prove, meets the filters of ``needs_document``."""
    try:
        verified = verify_run(spans)
    except TraceIncomplete as error:
        return Match(False, unproved=unproved_note(item.run_id, error.missing))
    if verified.revision != item.revision:
        return Match(False, unproved=unproved_note(item.run_id, verified.incomplete))
    return match_document(query, verified.run)
