"""Find new and changed files of a folder that are complete, by polling.

Polling, because file system events are lost when their queue overflows, do not cross network file systems and container
mounts, and say nothing of what happened before the start: polling would be needed besides.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from runspan.sources.filesystem import CHUNK, is_document_name
from runspan.watch.state_db import FileStat, FileStatus, WatchState

MAX_FILES: Final = 10_000
"""Files of one poll, the oldest first; so many are kept in memory."""

MAX_QUIET_WAIT: Final = 30.0
"""Seconds that a file may go on changing, or end inside a document, before it is read as it is and reported."""

UNKNOWN: Final = FileStat(-1, 0, 0)
"""Of a file of which the system does not even say how large it is."""

_LARGEST: Final = 2**63 - 1


@dataclass(slots=True)
class WatchedFile:
    """A file of the folder."""

    name: bytes
    path: str
    stat: FileStat
    since: float
    """When it was first seen as it is to be read, or unchanged since it was sent; monotonic seconds."""
    noted: bool = False
    """Whether people know why it is not read."""


class DirectoryPoller:
    """The files of a folder that are to be read.

    A file is complete when it was the same in two polls. Names that begin with a dot, or have no suffix of documents,
    are ignored, so a file may be written under such a name and renamed.
    """

    def __init__(
        self, path: str, state: WatchState, clock: Callable[[], float], *, patience: float = MAX_QUIET_WAIT
    ) -> None:
        """``clock``: monotonic seconds. ``patience``: see MAX_QUIET_WAIT."""
        self.path = path
        self.clock = clock
        self.patience = patience
        self._state = state
        self._seen: dict[bytes, WatchedFile] = {}
        self.unchanged: dict[bytes, WatchedFile] | None = None
        """Files that the receiver has, by name, with the time since when they have not changed; None: not collected.

        Symbolic links are not among them: what they mean depends on where they are, and their files are elsewhere.
        """
        self.took = 0.0
        """Seconds of the last poll."""

    @property
    def pending(self) -> int:
        """How many files were new or changed at the last poll and are not processed."""
        return len(self._seen)

    def poll(self) -> list[WatchedFile]:
        """Return the files that are complete, in the order of their last change. OSError without the folder."""
        now = self.clock()
        unchanged: dict[bytes, WatchedFile] = {}
        changed = heapq.nsmallest(
            MAX_FILES, self._changed(now, unchanged), key=lambda found: (found[1].changed, found[0])
        )
        before, self._seen = self._seen, {}
        if self.unchanged is not None:
            self.unchanged = unchanged
        complete = []
        for name, stat in changed:
            known = before.get(name)
            file = self._file(name, stat, now)
            if known is not None:
                file.since, file.noted = known.since, known.noted
            self._seen[name] = file
            if known is not None and (known.stat == stat or self.is_overdue(file)):
                complete.append(file)
        self.took = self.clock() - now
        return complete

    def is_overdue(self, file: WatchedFile) -> bool:
        """Return whether a file was waited for long enough."""
        return self.clock() - file.since >= self.patience

    def is_same(self, file: WatchedFile) -> bool:
        """Return whether a file is still as it was at the last poll."""
        try:
            return file_stat(os.stat(file.path)) == file.stat
        except PermissionError:
            return file.stat == UNKNOWN
        except OSError:
            return False

    def done(self, file: WatchedFile, status: FileStatus) -> None:
        """Record that a file was processed."""
        self._state.done(file.name, file.stat, status, prefix_digest(file.path, file.stat.size))
        self._seen.pop(file.name, None)

    def _changed(self, now: float, unchanged: dict[bytes, WatchedFile]) -> Iterator[tuple[bytes, FileStat]]:
        """Yield the files that are to be read, and put those that may be moved into ``unchanged``."""
        for name, stat, link in self._files():
            status = self._state.status(name, stat)
            if status is None:
                yield name, stat
            elif status is FileStatus.SENT and not link and self.unchanged is not None and len(unchanged) < MAX_FILES:
                known = self.unchanged.get(name)
                unchanged[name] = known if known and known.stat == stat else self._file(name, stat, now)

    def _files(self) -> Iterator[tuple[bytes, FileStat, bool]]:
        """Yield name, stat and whether it is a link."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not is_document_name(entry.name):
                    continue
                try:
                    if not entry.is_file():
                        continue
                    stat = file_stat(entry.stat())
                except PermissionError:
                    stat = UNKNOWN
                except OSError:
                    continue  # it was deleted meanwhile
                yield os.fsencode(entry.name), stat, entry.is_symlink()

    def _file(self, name: bytes, stat: FileStat, since: float) -> WatchedFile:
        return WatchedFile(name, os.path.join(self.path, os.fsdecode(name)), stat, since)


def prefix_digest(path: str, size: int) -> bytes | None:
    """Return the SHA-256 of so many bytes from the beginning of a file, or None when they cannot be read."""
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
    """Return what the system says of a file, in numbers that SQLite can hold: some file systems have larger ones."""
    changed = max(-_LARGEST, min(status.st_mtime_ns, _LARGEST))
    return FileStat(status.st_size, changed, status.st_ino & _LARGEST)
