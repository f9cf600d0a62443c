"""``Sweep``: one walk down the platform's list, page by page, from the newest run to an edge; no I/O.

The list is newest first, and it moves while it is read: runs arrive at its top, some change, a page may come twice.
So what matters is never the place of a run but its id, every walk goes some way past where an earlier one began, and
from time to time one goes all the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from runspan.platform_api import RunListPage


@dataclass(frozen=True, slots=True)
class ListFilter:
    """What the platform is asked to list; None means any."""

    workflow_id: str | None = None
    status: str | None = None

    @property
    def name(self) -> str:
        """As the checkpoint calls it."""
        return f"{self.status or ''}/{self.workflow_id or ''}"


@dataclass(slots=True)
class ListScan:
    """A walk. edge: the sort time below which runs are of no interest, nanoseconds since 1970; 0: all the way down.

    full: whether it looks for changes of what is known, not only for what is new. began: when. cursor: of the page
    that comes next, None for the first. top: the highest sort time on its first page, 0 until it was read. since: the
    platform's word for a window that reaches down to the edge; one walk keeps one, as its cursors may depend on it.
    failing_since: when the next page could first not be read, None when it was not tried, or could; nanoseconds of a
    clock that nobody sets.
    """

    filter: ListFilter
    edge: int
    full: bool
    began: int
    cursor: str | None = None
    top: int = 0
    since: str | None = None
    restarts: int = 0
    failures: int = 0
    failing_since: int | None = None
    seen: set[str] = field(default_factory=set)

    def take(self, page: RunListPage) -> bool:
        """Goes past a page; True when it was the last that is of interest.

        The walk ends only at a page of which every run is below the edge: the order of two runs that started in one
        moment is the platform's own. ValueError when the platform leads in a circle.
        """
        times = [item.time for item in page.items]
        if self.cursor is None and not self.top:
            # A run that claims to start in years would hide all that start before it.
            self.top = min(max(times, default=0) or self.began, self.began)
        if page.cursor is None or (times and max(times) < self.edge):
            return True
        if page.cursor in self.seen or page.cursor == self.cursor:
            raise ValueError("a cursor came a second time")
        self.seen.add(page.cursor)
        self.cursor = page.cursor
        return False

    def restart(self) -> None:
        """From the top again: the platform does not know the cursor any more."""
        self.cursor = None
        self.restarts += 1
        self.seen.clear()
