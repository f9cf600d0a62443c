"""Disk space that is kept for deletions, which write to the log before they free anything."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from runspan.storage.sqlite_file import translate_errors

NEARLY_FULL: Final = 1 << 20
"""Bytes of free disk space below which a write may fail at any time."""

DELETION_BYTES: Final = 4 << 20
"""Bytes that a small batch of deletions may add to the log."""
FRAME_HEADER: Final = 24
"""Bytes before each page in the log."""
STEP: Final = 256 << 10
"""The size of the reserve is a multiple of it, so that few writes change the size."""
_BLOCK: Final = bytes(64 << 10)


class Reserve:
    """A file of allocated disk space next to the database. Several processes may use it, since its size is its state.

    On a full disk neither the log nor the database can grow, so nothing could be deleted. Deletions then release this
    space and use it. Other writes succeed only while the file has the size that it needs, so they never use it.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(f"{database.name}-reserve")
        self._file: int | None = None

    def resize(self, size: int) -> None:
        """Allocate or free space. Raise StoreFull, and leave the file as it is, when the disk has no room."""
        with translate_errors(self.path):
            file = self._open()
            before = os.fstat(file).st_size
            try:
                _allocate(file, before, size)
            except OSError:
                os.ftruncate(file, before)
                raise
            os.ftruncate(file, size)

    def release(self) -> None:
        """Free the space, until the next ``resize``."""
        with translate_errors(self.path), suppress(FileNotFoundError):
            os.truncate(self.path, 0)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        """Return the file, which stays open: a process without file descriptors for clients can still write."""
        if self._file is not None:
            with suppress(OSError):
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    return self._file
            self.close()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        return self._file

    def delete(self) -> None:
        """Delete the file. A database that no process has open needs none."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    def release_if_nearly_full(self) -> bool:
        """Free the space if the disk has too little for the files that opening a database creates. Return whether."""
        if not self.path.exists() or free_bytes(self.path.parent) >= NEARLY_FULL:
            return False
        self.release()
        return True


def free_bytes(directory: Path) -> int:
    """Return the free space of a file system. Raise StoreError when the directory is gone."""
    with translate_errors(directory):
        return shutil.disk_usage(directory).free


def _allocate(file: int, start: int, end: int) -> None:
    """Allocate the blocks between two positions: a file that was only made longer has none."""
    if start >= end:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, start, end - start)
        return
    os.lseek(file, start, os.SEEK_SET)
    for position in range(start, end, len(_BLOCK)):
        os.write(file, _BLOCK[: end - position])
