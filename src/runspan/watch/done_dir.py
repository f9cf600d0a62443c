"""Files that are done with on their way out of a watched folder, in such a way that nothing written to one is lost.

Whoever writes a file may still have it open, or put another in its place just as it is moved. So a file that has rested
goes into a hidden folder beside the others, which nobody else writes to by name. There it is compared with what was
sent, and once it has rested once more it goes on. One that is not what was sent goes back, and is read again. Where a
file is says how far it came, so a kill at any moment costs nothing but time.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import file_digest, sha256
from typing import Final

from runspan.watch.poller import DirectoryPoller, WatchedFile, file_stat
from runspan.watch.state_db import FileStat, FileStatus, WatchState

BETWEEN: Final = ".runspan-moving-"
"""How the hidden folder is called, before some digits that follow from the target."""

_NO_LINKS: Final = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
"""What systems answer where a file cannot have two names."""


class ProcessedFileMover:
    """The files of a folder that leave it. Used by one thread.

    done_folder: where they go, or "" for nowhere; what is on its way then goes back. note: told what people should
    know, one line each.
    """

    def __init__(
        self, folder: DirectoryPoller, ledger: WatchState, done_folder: str, note: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._ledger = ledger
        self._done_folder = done_folder
        self._note = note
        self._name = BETWEEN + sha256(ledger.target.encode()).hexdigest()[:8]
        self._between = os.path.join(folder.path, self._name)
        self._resting: dict[bytes, tuple[FileStat, float]] = {}
        self._told: set[str] = set()
        self._began = False
        if done_folder:
            folder.follow_rest()

    def step(self) -> None:
        """One step of each file that is on its way or is to leave. After each look at the folder."""
        now = self._folder.clock()
        before, self._resting = self._resting, {}
        for name, signature in self._found():
            if not self._done_folder or self._ledger.outcome(self._key(name), signature) is not FileStatus.SENT:
                self._restore(name)
                continue
            known, since = before.get(name, (signature, now))
            since = since if known == signature else now
            if now - since >= self._folder.patience:
                since = now  # for one that cannot go on, until it is tried again
                self._stage(name, signature)
            self._resting[name] = signature, since
        self._finish()
        if not self._began:
            self._began = True
            self._tell_others()

    def end(self) -> None:
        """Nobody looks any more: what is on its way goes back, and is taken again at the next start."""
        for name, _ in self._found():
            self._restore(name)
        with suppress(OSError):
            os.rmdir(self._between)

    def _found(self) -> list[tuple[bytes, FileStat]]:
        """What is in the hidden folder, which is there only as long as it is needed."""
        try:
            with os.scandir(self._between) as entries:
                found = [(os.fsencode(entry.name), file_stat(entry.stat(follow_symlinks=False))) for entry in entries]
        except OSError:
            return []
        if not found:
            with suppress(OSError):
                os.rmdir(self._between)
        return found

    def _finish(self) -> None:
        """Takes those that have rested out of the folder. What is known of them is written down before."""
        rested = [
            candidate for candidate in self._folder.quiescent() if not os.path.lexists(self._path(candidate.name))
        ]
        if not rested:
            return
        for candidate in rested:
            self._ledger.done(self._key(candidate.name), candidate.signature, FileStatus.SENT)
        self._ledger.commit()
        for candidate in rested:
            self._folder.reset_quiescence(candidate)
            try:
                self._rename(candidate)
            except OSError as error:
                self._tell(candidate.path, error)

    def _rename(self, candidate: WatchedFile) -> None:
        if self._folder.same(candidate):
            os.makedirs(self._between, exist_ok=True)
            with suppress(FileNotFoundError):
                os.rename(candidate.path, self._path(candidate.name))

    def _stage(self, name: bytes, signature: FileStat) -> None:
        """From the hidden folder to the other one, unless it is written to in this moment."""
        source = self._path(name)
        try:
            try:
                target = put(source, self._done_folder, os.fsdecode(name))
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                target = copied(source, self._done_folder, os.fsdecode(name))
            left = os.path.lexists(source)
            if file_stat(os.lstat(source if left else target)) == signature:
                if left:
                    os.unlink(source)
            elif left:
                os.unlink(target)
            else:
                os.rename(target, source)
        except OSError as error:
            with suppress(OSError):
                if file_stat(os.lstat(source)) != signature:
                    return  # it was written to, so it goes back
            self._tell(os.path.join(self._folder.path, os.fsdecode(name)), error)

    def _restore(self, name: bytes) -> None:
        """It is read again. An engine may have put another file in its place, which is not overwritten."""
        source, own = self._path(name), os.path.join(self._folder.path, os.fsdecode(name))
        try:
            target = put(source, self._folder.path, os.fsdecode(name), shared=True)
            with suppress(FileNotFoundError):
                os.unlink(source)
        except OSError as error:
            if source not in self._told:
                self._told.add(source)
                self._note(f"{source}: cannot go back to {own}: {error.strerror or error}; it is not read where it is")
            return
        if target != own:
            self._note(f"{target}: was {own} until another file took its place; it is read too")

    def _tell(self, path: str, error: OSError) -> None:
        """A reason why files stay is mostly one for all of them."""
        why = error.strerror or str(error)
        if why not in self._told:
            self._told.add(why)
            self._note(f"{path}: cannot be moved to {self._done_folder}: {why}; it stays, and is tried again")

    def _tell_others(self) -> None:
        """A watch for another target that was killed may have left files on their way."""
        with suppress(OSError):
            for name in sorted(os.listdir(self._folder.path)):
                if name.startswith(BETWEEN) and name != self._name:
                    path = os.path.join(self._folder.path, name)
                    self._note(f"{path}: holds files that a watch for another target moves; they are not read here")

    def _path(self, name: bytes) -> str:
        return os.path.join(self._between, os.fsdecode(name))

    def _key(self, name: bytes) -> bytes:
        """How the ledger calls a file that is on its way."""
        return os.fsencode(os.path.join(self._name, os.fsdecode(name)))


def put(source: str, folder: str, name: str, *, shared: bool = False) -> str:
    """Gives a file a name in a folder, or a numbered one when that is taken: the path. It never takes the place of
    another. Where a file can have two names it keeps the old one too.

    shared: whether others put files into the place of those that are there. OSError: EXDEV for another file system.
    """

    def linked(target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            if not os.path.samestat(os.lstat(source), os.lstat(target)):
                raise  # else a kill came between the two names

    def reserved(target: str) -> None:
        # An empty file first, since to rename is to overwrite.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    try:
        return _free(folder, name, linked)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    target = _free(folder, name, reserved, first=2 if shared else 1)
    try:
        os.rename(source, target)
    except OSError:
        os.unlink(target)
        raise
    return target


def copied(source: str, folder: str, name: str) -> str:
    """The same for another file system: the path of a copy that was compared and is on the disk.

    Until then the copy is hidden; a kill leaves it there, and the next attempt begins it anew.
    """
    part = os.path.join(folder, f"{BETWEEN}{sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:16]}.part")
    with suppress(FileNotFoundError):
        os.unlink(part)  # which may be what a copy is called that was made before a kill
    try:
        shutil.copy2(source, part)
        with open(source, "rb") as one, open(part, "rb") as other:
            os.fsync(other.fileno())
            if file_digest(one, "sha256").digest() != file_digest(other, "sha256").digest():
                raise OSError(errno.EIO, "the copy is not the same")
        target = put(part, folder, name)
    finally:
        with suppress(OSError):
            os.unlink(part)
    _sync(folder)
    return target


def _free(folder: str, name: str, make: Callable[[str], None], *, first: int = 1) -> str:
    """The first path that could be made."""
    number = first
    while True:
        target = os.path.join(folder, name if number == 1 else f"{number}-{name}")
        try:
            make(target)
        except FileExistsError:
            number += 1
        else:
            return target


def _sync(folder: str) -> None:
    """The new name is on the disk before the old one goes. Some systems cannot be asked for that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
