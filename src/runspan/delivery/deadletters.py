"""``DeadLetters``: a file of the documents that a receiver did not take, in the form that an export reads back in."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from runspan.delivery.batch import RunSpans
from runspan.errors import DocumentError, SettingError
from runspan.run import Run


class DeadLetters:
    """Appends to a file, which is made when it is not there and removed again when nothing came into it.

    Every document that was read is held until the receiver has taken it. What is rejected, in doubt or not sent is
    written at once; ``close`` writes what nobody answered for, and returns when all of it is on disk. kept: documents
    written. lost: documents that could not be written, because of ``trouble``. All methods may be called from several
    threads, and after ``close`` they do nothing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept = 0
        self.lost = 0
        self.trouble = ""
        self._lock = threading.Lock()
        self._open: dict[int, bytes] = {}
        try:
            self._made = not os.path.exists(path)
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or str(error)
            raise SettingError(where=path, expected="a file to keep documents in", got=got) from None
        self._torn = not _ends_a_line(self._file)

    def watch(self, documents: Iterable[Run | DocumentError]) -> Iterator[Run | DocumentError]:
        """The same documents; each run is held from now on."""
        for document in documents:
            if isinstance(document, Run):
                with self._lock:
                    self._open[id(document.text)] = document.text
            yield document

    def taken(self, runs: Iterable[RunSpans]) -> None:
        """The receiver has them."""
        with self._lock:
            for run in runs:
                self._open.pop(id(run.text), None)

    def keep(self, runs: Iterable[RunSpans]) -> None:
        """The receiver does not have them, or not surely."""
        for run in runs:
            self.keep_text(run.text)

    def keep_text(self, text: bytes) -> None:
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
            size = os.fstat(self._file).st_size
            os.close(self._file)
            self._file = None
            if self._made and not size:
                os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, text: bytes) -> None:
        if self._file is None or not text:
            return
        line = framed(text)
        try:
            before = os.fstat(self._file).st_size
            whole = b"\n" + line if self._torn else line
            done = 0
            try:
                while done < len(whole):
                    done += os.write(self._file, whole[done:])
            except OSError:
                os.ftruncate(self._file, before)  # half a document would be read as a broken one
                raise
        except OSError as error:
            self._fail(error, 1)
            return
        self._torn = False
        self.kept += 1

    def _fail(self, error: OSError, documents: int) -> None:
        self.trouble = self.trouble or error.strerror or str(error)
        self.lost += documents


def framed(text: bytes) -> bytes:
    """A document as one line of NDJSON; as an array of its own when the text itself has line breaks."""
    return b"[\n" + text + b"\n]\n" if b"\n" in text else text + b"\n"


def _ends_a_line(file: int) -> bool:
    size = os.fstat(file).st_size
    return size == 0 or os.pread(file, 1, size - 1) == b"\n"
