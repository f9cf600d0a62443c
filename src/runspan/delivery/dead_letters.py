"""``DeadLetters``: a file of the documents that a receiver did not take, in the form that an export reads back in."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from runspan.delivery.batch import RunSpans
from runspan.errors import DocumentError, SettingError
from runspan.model.run import Run

_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


class DeadLetters:
    """Appends to a file, which is made when it is not there and removed again when nothing came into it.

    Every document that was read is held until the receiver has taken it. What is rejected, in doubt or not sent is
    written at once; ``close`` writes what nobody answered for, and returns when all of it is on disk. kept: documents
    written. lost: documents that could not be written, because of ``trouble``. All methods may be called from several
    threads, and after ``close`` they do nothing.

    Several processes may write to one file, as the workers of a server do: each holds its lock while it writes a
    document, and while it removes the file. One that finds it removed, or moved away to be sent, makes a new one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept = 0
        self.lost = 0
        self.trouble = ""
        self._lock = threading.Lock()
        self._open: dict[int, bytes] = {}
        self._made = False
        try:
            self._file: int | None = self._opened()
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or str(error)
            raise SettingError(where=path, expected="a file to keep documents in", got=got) from None

    def track(self, documents: Iterable[Run | DocumentError]) -> Iterator[Run | DocumentError]:
        """The same documents; each run is held from now on."""
        for document in documents:
            if isinstance(document, Run):
                with self._lock:
                    self._open[id(document.text)] = document.text
            yield document

    def ack(self, runs: Iterable[RunSpans]) -> None:
        """The receiver has them."""
        with self._lock:
            for run in runs:
                self._open.pop(id(run.text), None)

    def write(self, runs: Iterable[RunSpans]) -> None:
        """The receiver does not have them, or not surely."""
        for run in runs:
            self.write_text(run.text)

    def write_text(self, text: bytes) -> None:
        """The same for a document that never became spans."""
        with self._lock:
            self._open.pop(id(text), None)
            self._write(text)

    def close(self) -> None:
        """Calling it twice is allowed."""
        with self._lock:
            for text in self._open.values():
                self._write(text)
            self._open.clear()
            if self._file is None:
                return
            try:
                os.fsync(self._file)
            except OSError as error:
                self._fail(error, self.kept)
            with _alone(self._file) as locked:
                # Without a lock another process may be about to write, and a file that is empty harms nobody.
                if locked and self._made and not os.fstat(self._file).st_size and self._stands(self._file):
                    os.unlink(self.path)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_APPEND
        try:
            file = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self._made = True
        except FileExistsError:
            # A link that leads nowhere is there as well, and its target is not.
            file = os.open(self.path, flags | os.O_CREAT, 0o600)
        return file

    def _stands(self, file: int) -> bool:
        """Whether the path still leads to this file. One that cannot be looked up is still open, and can be written."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def _write(self, text: bytes) -> None:
        if self._file is None or not text:
            return
        try:
            while not self._appended(self._file, framed(text)):
                # What this process wrote there is on its way to a receiver, or in somebody's hands: on disk it must be.
                os.fsync(self._file)
                file = self._opened()
                os.close(self._file)
                self._file = file
        except OSError as error:
            self._fail(error, 1)
            return
        self.kept += 1

    def _appended(self, file: int, line: bytes) -> bool:
        """Appends it, whole or not at all; False when the file is no longer the one at the path."""
        with _alone(file):
            if not self._stands(file):
                return False
            before = os.fstat(file).st_size
            torn = before and os.pread(file, 1, before - 1) != b"\n"  # by one that was killed while it wrote
            whole = b"\n" + line if torn else line
            done = 0
            try:
                while done < len(whole):
                    done += os.write(file, whole[done:])
            except OSError:
                os.ftruncate(file, before)  # half a document would be read as a broken one
                raise
        return True

    def _fail(self, error: OSError, documents: int) -> None:
        self.trouble = self.trouble or error.strerror or str(error)
        self.lost += documents


def framed(text: bytes) -> bytes:
    """A document as one line of NDJSON; as an array of its own when the text itself has line breaks."""
    return b"[\n" + text + b"\n]\n" if b"\n" in text else text + b"\n"


@contextmanager
def _alone(file: int) -> Iterator[bool]:
    """No other process writes to the file meanwhile; False where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        locked = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        locked = False
    try:
        yield locked
    finally:
        if locked:
            fcntl.flock(file, fcntl.LOCK_UN)
