"""Which files of a folder are new or changed, and whole: by looking again and again.

Looking, and not the system's notices: notices are lost when a queue overflows, do not cross network file systems and
container mounts, and say nothing of what happened before the start, so the looking would be needed beside them.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from runspan.sources.decompress import CHUNK
from runspan.sources.filesystem import is_document_name
from runspan.watch.state_db import FileStat, FileStatus, WatchState

MAX_FILES: Final = 10_000
"""Files of one round, the oldest first; so many are kept in mind at once."""

MAX_QUIET_WAIT: Final = 30.0
"""Seconds that a file may go on changing, or be cut, before it is read as it is and its faults are told; and that one
rests before it is moved."""

UNKNOWN: Final = FileStat(-1, 0, 0)
"""Of a file that the system tells us nothing of."""

_LARGEST: Final = 2**63 - 1


@dataclass(slots=True)
class WatchedFile:
    """A file. since: when it was first seen not to be done with, or resting, monotonic seconds. told: whether people
    know why it is not read."""

    name: bytes
    path: str
    signature: FileStat
    since: float
    told: bool = False


class DirectoryPoller:
    """The files of a folder that are to be read. clock: monotonic seconds.

    A file is whole when it was the same at two looks. Writing under another name and renaming is seen at the next look
    but one, as well; names that begin with a dot, or that are none of documents, are passed over.
    """

    def __init__(
        self, path: str, ledger: WatchState, clock: Callable[[], float], *, patience: float = MAX_QUIET_WAIT
    ) -> None:
        self.path = path
        self.clock = clock
        self.patience = patience
        self._ledger = ledger
        self._seen: dict[bytes, WatchedFile] = {}
        self._resting: dict[bytes, WatchedFile] | None = None
        self.took = 0.0
        """Seconds of the last look, to be put in proportion to the pause before the next."""

    @property
    def waiting(self) -> int:
        """Files that were new or changed at the last look and are not done with."""
        return len(self._seen)

    def poll(self) -> list[WatchedFile]:
        """The files that are whole, in the order in which they were changed. OSError when the folder is not there."""
        now = self.clock()
        still: dict[bytes, WatchedFile] = {}
        changed = heapq.nsmallest(MAX_FILES, self._changed(now, still), key=lambda found: (found[1].changed, found[0]))
        before, self._seen = self._seen, {}
        if self._resting is not None:
            self._resting = still
        whole = []
        for name, signature in changed:
            known = before.get(name)
            candidate = self._candidate(name, signature, now)
            if known is not None:
                candidate.since, candidate.told = known.since, known.told
            self._seen[name] = candidate
            if known is not None and (known.signature == signature or self.is_overdue(candidate)):
                whole.append(candidate)
        self.took = self.clock() - now
        return whole

    def is_overdue(self, candidate: WatchedFile) -> bool:
        """Whether a file was waited for long enough."""
        return self.clock() - candidate.since >= self.patience

    def same(self, candidate: WatchedFile) -> bool:
        """Whether the file is still as it was when it was looked at."""
        try:
            return file_stat(os.stat(candidate.path)) == candidate.signature
        except PermissionError:
            return candidate.signature == UNKNOWN
        except OSError:
            return False

    def touch(self, candidate: WatchedFile) -> None:
        """It changed while it was read, and need not be read again at once."""
        candidate.since = self.clock()

    def done(self, candidate: WatchedFile, outcome: FileStatus) -> None:
        """It was read and answered for."""
        head = head_of(candidate.path, candidate.signature.size)
        self._ledger.done(candidate.name, candidate.signature, outcome, head)
        self._seen.pop(candidate.name, None)

    def follow_rest(self) -> None:
        """From now on ``rested`` tells."""
        self._resting = {}

    def quiescent(self) -> list[WatchedFile]:
        """Files that the receiver has and that did not change for long. Links are not among them: what they mean
        depends on where they are, and what they lead to is written to elsewhere."""
        return [candidate for candidate in (self._resting or {}).values() if self.is_overdue(candidate)]

    def reset_quiescence(self, candidate: WatchedFile) -> None:
        """It has not rested yet, as it were."""
        if self._resting is not None:
            self._resting.pop(candidate.name, None)

    def _changed(self, now: float, still: dict[bytes, WatchedFile]) -> Iterator[tuple[bytes, FileStat]]:
        """Those that are to be read. still: takes those that may leave."""
        for name, signature, link in self._files():
            outcome = self._ledger.outcome(name, signature)
            if outcome is None:
                yield name, signature
            elif outcome is FileStatus.SENT and not link and self._resting is not None and len(still) < MAX_FILES:
                known = self._resting.get(name)
                still[name] = known if known and known.signature == signature else self._candidate(name, signature, now)

    def _files(self) -> Iterator[tuple[bytes, FileStat, bool]]:
        """Name, signature and whether it is a link."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not is_document_name(entry.name):
                    continue
                try:
                    if not entry.is_file():
                        continue
                    signature = file_stat(entry.stat())
                except PermissionError:
                    signature = UNKNOWN
                except OSError:
                    continue  # it went while we looked
                yield os.fsencode(entry.name), signature, entry.is_symlink()

    def _candidate(self, name: bytes, signature: FileStat, since: float) -> WatchedFile:
        return WatchedFile(name, os.path.join(self.path, os.fsdecode(name)), signature, since)


def head_of(path: str, size: int) -> bytes | None:
    """The SHA-256 of so many bytes from the beginning of a file, None when it cannot be read."""
    digest = sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while size > 0 and (chunk := file.read(min(size, CHUNK))):
                digest.update(chunk)
                size -= len(chunk)
    except OSError:
        return None
    return None if size else digest.digest()


def file_stat(status: os.stat_result) -> FileStat:
    """What the system says of a file, in numbers that a ledger can hold: some file systems have larger ones."""
    changed = max(-_LARGEST, min(status.st_mtime_ns, _LARGEST))
    return FileStat(status.st_size, changed, status.st_ino & _LARGEST)
