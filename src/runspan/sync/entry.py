"""``Entry``: what is remembered of one run between the platform and the receiver; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    """Where a run stands. The numbers are those of the checkpoint's file."""

    NEW = 0
    """The platform listed it, and the receiver has nothing of it yet: the backlog."""
    ENDED = 1
    """The receiver has it, and it had ended."""
    OPEN = 2
    """The receiver has it as it was before its end: it is fetched again until then."""
    REFUSED = 3
    """Its document cannot be carried, or the receiver does not take it. Asked for again only when it changes."""
    GONE = 4
    """The platform listed it and then did not have it."""


AT_ONCE = 0
"""As ``Entry.due``: next, and not at a certain time."""


@dataclass(slots=True)
class Entry:
    """One run. Times are nanoseconds since 1970.

    time: what the platform sorts it by. due: when it is to be fetched, None: not before something is heard of it.
    failures: fetches in a row that came to nothing.
    listed, own: fingerprints, of the last list item and of the document's own summary; b"" when there was none.
    sent, revision: digest and revision of what was last handed to the delivery, which may have arrived: written down
    before it is sent. acked: digest of what the receiver last said that it has.
    rooted: whether a run span was ever sent, which is written once.
    changed_at: when the document was last seen to be another, or to be gone. sent_at: when the receiver last took it.
    reason: of a run that is REFUSED.
    """

    run_id: str
    time: int
    state: State = State.NEW
    due: int | None = AT_ONCE
    failures: int = 0
    listed: bytes = b""
    own: bytes = b""
    sent: bytes = b""
    revision: int = 0
    acked: bytes = b""
    rooted: bool = False
    changed_at: int = 0
    sent_at: int = 0
    reason: str = ""
    stored: State | None = None
    """Its state as it stands in the file, None when it is not there."""
    again: bool = False
    """It was listed as another while it was fetched or sent: what was fetched may be the older one."""

    @property
    def key(self) -> bytes:
        """How ``Acknowledged`` calls it."""
        return self.run_id.encode()
