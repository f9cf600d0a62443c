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

from runspan.sources.filesystem import CHUNK, SYMLINK_OUT, is_document_name
from runspan.watch.state_db import FileStat, FileStatus, WatchState

MAX_FILES: Final = 10_000
"""Files of one poll, the oldest first; so many are kept in memory."""

MAX_QUIET_WAIT: Final = 30.0
"""Seconds that a file may go on changing, or end inside a document, before it is read as it is and reported."""

UNKNOWN: Final = FileStat(-1, 0, 0, 0)
"""Of a file of which the system does not even say how large it is."""

SUBFOLDER: Final = "a folder in the folder, which --recursive reads"
"""Why a folder in the folder is not read."""

_LARGEST: Final = 2**63 - 1


@dataclass(slots=True)
class WatchedFile:
    """A file of the folder."""

    name: bytes
    """Its path in the folder."""
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
        self,
        path: str,
        state: WatchState,
        clock: Callable[[], float],
        *,
        recursive: bool = False,
        follow_symlinks: bool = False,
        done_folder: str = "",
        patience: float = MAX_QUIET_WAIT,
    ) -> None:
        """``clock``: monotonic seconds. ``recursive``: whether the folders in the folder are read too.
        ``follow_symlinks``: whether symbolic links out of the folder are followed. ``done_folder``: is never read.
        ``patience``: see MAX_QUIET_WAIT.
        """
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
        self.folders: list[str] = []
        """The folders that the last poll has read."""
        self.skipped: dict[str, str] = {}
        """What the last poll did not read although it may contain documents: path → reason."""
        self._returned: dict[str, str] = {}
        self._recursive = recursive
        self._follow_symlinks = follow_symlinks
        self._done_folder = os.path.realpath(done_folder) if done_folder else ""

    @property
    def pending(self) -> int:
        """How many files were new or changed at the last poll and are not processed."""
        return len(self._seen)

    def poll(self) -> list[WatchedFile]:
        """Return the files that are complete, in the order of their last change. OSError without the folder."""
        now = self.clock()
        unchanged: dict[bytes, WatchedFile] = {}
        changed = heapq.nsmallest(
            MAX_FILES, self._changed(now, unchanged), key=lambda found: (found[1].modified, found[0])
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

    def newly_skipped(self) -> list[tuple[str, str]]:
        """Return the paths and reasons of ``skipped`` that the last call did not have."""
        new = [(path, reason) for path, reason in self.skipped.items() if self._returned.get(path) != reason]
        self._returned = self.skipped
        return new

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
        """Yield name, stat and whether it is a link. Fill ``folders`` and ``skipped``."""
        self.folders, self.skipped = [], {}
        root = os.path.realpath(self.path)
        pending, known = [self.path], {root}
        while pending:
            folder = pending.pop()
            try:
                entries = os.scandir(folder)
            except OSError as error:
                if folder == self.path:
                    raise
                if not isinstance(error, FileNotFoundError | NotADirectoryError):  # else it was deleted meanwhile
                    self.skipped[folder] = error.strerror or str(error)
                continue
            self.folders.append(folder)
            with entries as found:
                for entry in found:
                    if entry.name.startswith("."):
                        continue
                    try:
                        is_folder = entry.is_dir()
                        if not (is_folder or is_document_name(entry.name)) or self._leads_out(entry, root):
                            continue
                        if is_folder:
                            pending += self._folder(entry, known)
                        elif entry.is_file():
                            yield self._name(entry.path), file_stat(entry.stat()), entry.is_symlink()
                    except PermissionError:
                        yield self._name(entry.path), UNKNOWN, entry.is_symlink()
                    except OSError:
                        continue  # it was deleted meanwhile

    def _leads_out(self, entry: os.DirEntry[str], root: str) -> bool:
        """Return whether it is a link out of the folder, which is not followed."""
        if self._follow_symlinks or not entry.is_symlink():
            return False
        target = os.path.realpath(entry.path)
        if target == root or target.startswith(os.path.join(root, "")):
            return False
        self.skipped[entry.path] = SYMLINK_OUT
        return True

    def _folder(self, entry: os.DirEntry[str], known: set[str]) -> list[str]:
        """Return a folder that is to be read, or nothing."""
        target = os.path.realpath(entry.path)
        if target in known or target == self._done_folder:
            return []
        known.add(target)
        if not self._recursive:
            self.skipped[entry.path] = SUBFOLDER
            return []
        return [entry.path]

    def _name(self, path: str) -> bytes:
        return os.fsencode(path[len(os.path.join(self.path, "")) :])

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
    modified, changed = (max(-_LARGEST, min(time, _LARGEST)) for time in (status.st_mtime_ns, status.st_ctime_ns))
    return FileStat(status.st_size, modified, changed, status.st_ino & _LARGEST)
