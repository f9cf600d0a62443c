"""Which files of a folder are new or changed, and whole: by looking again and again.

Looking, and not the system's notices: notices are lost when a queue overflows, do not cross network file systems and
container mounts, and say nothing of what happened before the start, so the looking would be needed beside them.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from runspan.sources.ledger import Ledger, Outcome, Signature
from runspan.sources.opening import is_document_name

MAX_FILES: Final = 10_000
"""Files of one round, the oldest first; so many are kept in mind at once."""

PATIENCE: Final = 30.0
"""Seconds that a file may go on changing, or be cut, before it is read as it is and its faults are told."""


@dataclass(slots=True)
class Candidate:
    """A file to read. since: when it was first seen not to be done with, monotonic seconds."""

    name: bytes
    path: str
    signature: Signature
    since: float


class Folder:
    """The files of a folder that are to be read. clock: monotonic seconds.

    A file is whole when it was the same at two looks. Writing under another name and renaming is seen at the next look
    but one, as well; names that begin with a dot, or that are none of documents, are passed over.
    """

    def __init__(self, path: str, ledger: Ledger, clock: Callable[[], float], *, patience: float = PATIENCE) -> None:
        self.path = path
        self._ledger = ledger
        self._clock = clock
        self._patience = patience
        self._seen: dict[bytes, Candidate] = {}
        self.took = 0.0
        """Seconds of the last look, to be put in proportion to the pause before the next."""

    @property
    def waiting(self) -> int:
        """Files that were new or changed at the last look and are not done with."""
        return len(self._seen)

    def look(self) -> list[Candidate]:
        """The files that are whole, in the order in which they were changed. OSError when the folder is not there."""
        now = self._clock()
        changed = heapq.nsmallest(MAX_FILES, self._changed(), key=lambda found: (found[1].changed, found[0]))
        before, self._seen = self._seen, {}
        whole = []
        for name, signature in changed:
            known = before.get(name)
            since = now if known is None else known.since
            candidate = Candidate(name, os.path.join(self.path, os.fsdecode(name)), signature, since)
            self._seen[name] = candidate
            if known is not None and (known.signature == signature or self.impatient(candidate)):
                whole.append(candidate)
        self.took = self._clock() - now
        return whole

    def impatient(self, candidate: Candidate) -> bool:
        """Whether a file was waited for long enough."""
        return self._clock() - candidate.since >= self._patience

    def same(self, candidate: Candidate) -> bool:
        """Whether the file is still as it was when it was looked at."""
        try:
            return signature_of(os.stat(candidate.path)) == candidate.signature
        except OSError:
            return False

    def done(self, candidate: Candidate, outcome: Outcome) -> None:
        """It was read and answered for."""
        self._ledger.done(candidate.name, candidate.signature, outcome)
        self._seen.pop(candidate.name, None)

    def _changed(self) -> Iterator[tuple[bytes, Signature]]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not is_document_name(entry.name):
                    continue
                try:
                    if not entry.is_file():
                        continue
                    signature = signature_of(entry.stat())
                except OSError:
                    continue  # it went while we looked
                name = os.fsencode(entry.name)
                if not self._ledger.is_done(name, signature):
                    yield name, signature


def signature_of(status: os.stat_result) -> Signature:
    """What the system says of a file."""
    return Signature(status.st_size, status.st_mtime_ns, status.st_ino)
