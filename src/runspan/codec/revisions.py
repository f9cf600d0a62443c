"""The revision numbers of the documents of one run, as writers assign them that know what was written before; no I/O.

See ``fields.ROOT_REVISION`` for what the numbers mean.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from runspan.codec.fields import ROOT_REVISION
from runspan.model.document import Run, latest_time

MAX_REVISION: Final = 2 * ROOT_REVISION - (1 << 32)
"""The highest revision accepted: it leaves room for later revisions in 64 bits."""


class WrittenState(NamedTuple):
    """What a writer has to know of the newest revision of a run to rank the next one."""

    revision: int
    latest: int
    """The latest time in its document, see ``model.document.latest_time``."""
    finished: bool
    """Whether the run has ended in it."""


def first_revision(run: Run, observed_at: int) -> int:
    """Return the revision of a document that is the first of its run."""
    return ROOT_REVISION if run.finished else observed_at


def next_revision(stored: int, run: Run, observed_at: int) -> int:
    """Return the revision of a changed document: always above the stored one."""
    if stored >= ROOT_REVISION:
        return max(ROOT_REVISION + observed_at, stored + 1)
    return first_revision(run, max(observed_at, stored + 1))


def repeated_revision(stored: int, observed_at: int) -> int:
    """Return the revision of an unfinished run that was observed again as it is stored."""
    return max(stored, observed_at + (ROOT_REVISION if stored >= ROOT_REVISION else 0))


def is_outdated(run: Run, stored: WrittenState) -> bool:
    """Return whether an unfinished document is older than the stored end of its run, or what followed it.

    Over OTLP a revision of an unfinished run ranks below the end. A run that was reopened has a later time than its end
    had.
    """
    if run.finished or stored.revision < ROOT_REVISION:
        return False
    latest = latest_time(run.envelope)
    return latest < stored.latest or (latest == stored.latest and stored.finished)
