"""Move processed files out of a watched folder, so that no file is lost that takes their place meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import file_digest, sha256
from typing import Final

from runspan.system import sync_file, sync_path
from runspan.watch.poller import DirectoryPoller, WatchedFile, file_stat
from runspan.watch.state_db import FileStat

PREFIX: Final = ".runspan-moving-"
"""Begins the name of a file while it is moved; the poller skips such names."""

_NO_LINKS: Final = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
"""What systems report where a file cannot have two names."""


class ProcessedFileMover:
    """Moves files that the receiver has, once they have not changed for a minute. Used by one thread.

    A file is first renamed to a hidden name in its own folder. That takes whatever has the name at that moment, also a
    file that an engine has just put there, so it is compared with what was sent: another file goes back and is read.
    Only then does it get its name in the target folder. A process that is killed in between leaves the file under its
    hidden name, and the next one puts it back.
    """

    def __init__(self, poller: DirectoryPoller, done_folder: str, note: Callable[[str], None]) -> None:
        """``done_folder``: where files go, or "" to move none. ``note``: called with each line for people."""
        self._poller = poller
        self._done_folder = done_folder
        self._note = note
        self._noted: set[str] = set()
        self._may_have_hidden = True
        if done_folder:
            poller.unchanged = {}

    def step(self) -> None:
        """Move the files that may go. Call it after each poll."""
        if self._may_have_hidden:
            self._may_have_hidden = False
            for folder in self._poller.folders:
                for name in sorted(os.listdir(folder)):
                    if name.startswith(PREFIX):
                        self._restore(os.path.join(folder, name.removeprefix(PREFIX)))
        latest = self._poller.clock() - 2 * self._poller.patience
        unchanged = self._poller.unchanged or {}
        for file in [each for each in unchanged.values() if each.since <= latest]:
            del unchanged[file.name]  # if it cannot be moved now, it is tried again after the same time
            try:
                self._move(file)
            except OSError as error:
                reason = error.strerror or str(error)
                if reason not in self._noted:  # it is mostly the same one for all files
                    self._noted.add(reason)
                    text = f"cannot be moved to {self._done_folder}: {reason}; it stays, and is tried again"
                    self._note(f"{file.path}: {text}")

    def _move(self, file: WatchedFile) -> None:
        os.stat(self._done_folder)  # raises when the folder is away
        hidden = _hidden(file.path)
        if os.path.lexists(hidden) or not self._poller.is_same(file):
            return
        try:
            os.rename(file.path, hidden)
            renamed = file_stat(os.lstat(hidden))
            if renamed._replace(changed=file.stat.changed) == file.stat:  # which is when it was renamed
                self._place(hidden, os.fsdecode(file.name), renamed)
        except FileNotFoundError:
            return  # the engine deleted it
        finally:
            if os.path.lexists(hidden):
                self._restore(file.path)

    def _place(self, hidden: str, path: str, stat: FileStat) -> None:
        """Give a file its path in the target folder. Leave it where it is when it was written to meanwhile."""
        folder, name = os.path.split(os.path.join(self._done_folder, path))
        os.makedirs(folder, exist_ok=True)
        try:
            add_name(hidden, folder, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            try:
                target = copy_file(hidden, folder, name)
            except OSError:
                if file_stat(os.lstat(hidden)) == stat:
                    raise
                return
            if file_stat(os.lstat(hidden)) != stat:
                os.unlink(target)
                return
        with suppress(FileNotFoundError):
            os.unlink(hidden)

    def _restore(self, own: str) -> None:
        """Put a file back, to be read again. It does not replace a file that has its name now."""
        hidden = _hidden(own)
        try:
            target = add_name(hidden, *os.path.split(own), shared=True)
            with suppress(FileNotFoundError):
                os.unlink(hidden)
        except OSError as error:
            self._may_have_hidden = True
            if hidden not in self._noted:
                self._noted.add(hidden)
                reason = error.strerror or str(error)
                self._note(f"{hidden}: cannot be renamed to {own}: {reason}; it is not read until it can")
            return
        if target != own:
            self._note(f"{target}: was {own} until another file took its place; it is read too")


def _hidden(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, PREFIX + name)


def add_name(source: str, folder: str, name: str, *, shared: bool = False) -> str:
    """Give a file a name in a folder, or a numbered one when it is taken, and return the path.

    No other file is replaced. The file keeps its old name too, except on file systems where a file has only one.

    ``shared``: whether others replace files of the folder. Raise OSError, with EXDEV for another file system.
    """

    def link(target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            if not os.path.samestat(os.lstat(source), os.lstat(target)):
                raise  # else the process was killed between the two names

    def reserve(target: str) -> None:
        # An empty file first, since a rename replaces what is there.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    try:
        return _first_free(folder, name, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    target = _first_free(folder, name, reserve, first=2 if shared else 1)
    try:
        os.rename(source, target)
    except OSError:
        os.unlink(target)
        raise
    return target


def copy_file(source: str, folder: str, name: str) -> str:
    """Copy a file to another file system, and return the path of the copy, which was compared and is on the disk.

    Until then the copy is hidden. A process that is killed leaves it, and the next attempt replaces it.
    """
    part = os.path.join(folder, f"{PREFIX}{sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:16]}.part")
    with suppress(FileNotFoundError):
        os.unlink(part)  # it may be another name of a copy that is complete
    try:
        shutil.copy2(source, part)
        with open(source, "rb") as original, open(part, "rb") as copy:
            sync_file(copy.fileno())
            if file_digest(original, "sha256").digest() != file_digest(copy, "sha256").digest():
                raise OSError(errno.EIO, "the copy is not the same")
        target = add_name(part, folder, name)
    finally:
        with suppress(OSError):
            os.unlink(part)
    with suppress(OSError):  # some systems do not sync folders
        sync_path(folder)
    return target


def _first_free(folder: str, name: str, create: Callable[[str], None], *, first: int = 1) -> str:
    """Return the first path that could be created."""
    number = first
    while True:
        target = os.path.join(folder, name if number == 1 else f"{number}-{name}")
        try:
            create(target)
            return target
        except FileExistsError:
            number += 1
