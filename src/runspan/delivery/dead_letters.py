"""``DeadLetters``: a file of the documents that a receiver did not accept, in a form that an export can read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self

from runspan.delivery.transport import RunSpans
from runspan.errors import ConfigError, DocumentError
from runspan.model.document import Run
from runspan.system import BINARY, locked, sync_file


class DeadLetters:
    """Append to a file, which is created if missing and removed again if it stays empty.

    Every document that was read is held until the receiver has accepted it. A rejected or unsent document is
    written at once; ``close`` writes those without a response, and returns when all are on disk. Thread-safe; after
    ``close`` every method does nothing.

    Several processes may write to one file, as the workers of a server do: each holds its lock while it writes a
    document, and while it removes the file. A process that finds it removed, or moved away, creates a new one. Windows
    does neither to a file that is open, so an empty one stays there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept = 0
        """Documents written."""
        self.lost = 0
        """Documents that could not be written, the first because of ``write_error``."""
        self.write_error = ""
        self._lock = threading.Lock()
        self._held: dict[int, bytes] = {}
        self._created = False
        try:
            self._file: int | None = self._open_file()
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or str(error)
            raise ConfigError(where=path, expected="a file to keep documents in", got=got) from None

    def track(self, documents: Iterable[Run | DocumentError]) -> Iterator[Run | DocumentError]:
        """Yield the same documents; each run is held from now on."""
        for document in documents:
            if isinstance(document, Run):
                with self._lock:
                    self._held[id(document.text)] = document.text
            yield document

    def ack(self, runs: Iterable[RunSpans]) -> None:
        """Drop runs that the receiver has accepted."""
        with self._lock:
            for run in runs:
                self._held.pop(id(run.text), None)

    def write_text(self, text: bytes) -> None:
        """Write a document that the receiver does not have, or may not have."""
        with self._lock:
            self._held.pop(id(text), None)
            self._write(text)

    def close(self) -> None:
        """Write what is still held, and close the file. Idempotent."""
        with self._lock:
            for text in self._held.values():
                self._write(text)
            self._held.clear()
            if self._file is None:
                return
            try:
                sync_file(self._file)
            except OSError as error:
                self._fail(error, self.kept)
            with locked(self._file) as has_lock:
                # Without a lock another process may be about to write, and an empty file does no harm.
                if has_lock and self._created and not os.fstat(self._file).st_size and self._is_current(self._file):
                    with suppress(PermissionError):  # Windows removes no file that is open
                        os.unlink(self.path)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_file(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | BINARY
        try:
            file = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self._created = True
        except FileExistsError:
            # A dangling link exists as well, and its target does not.
            file = os.open(self.path, flags | os.O_CREAT, 0o600)
        return file

    def _is_current(self, file: int) -> bool:
        """Return True if the path still leads to this file, or cannot be looked up: it is open and can be written."""
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
            while not self._append(self._file, framed(text)):
                # The file was moved away to be sent again: what this process wrote there has to be on disk.
                sync_file(self._file)
                file = self._open_file()
                os.close(self._file)
                self._file = file
        except OSError as error:
            self._fail(error, 1)
            return
        self.kept += 1

    def _append(self, file: int, line: bytes) -> bool:
        """Append a complete line or nothing. Return False if the file is no longer the one at the path."""
        with locked(file):
            if not self._is_current(file):
                return False
            before = os.fstat(file).st_size
            torn = before and _last_byte(file, before) != b"\n"  # its writer was killed
            data = b"\n" + line if torn else line
            written = 0
            try:
                while written < len(data):
                    written += os.write(file, data[written:])
            except OSError:
                with suppress(OSError):  # the first error says more
                    os.ftruncate(file, before)  # half a document would be read as a malformed one
                raise
        return True

    def _fail(self, error: OSError, documents: int) -> None:
        self.write_error = self.write_error or error.strerror or str(error)
        self.lost += documents


def framed(text: bytes) -> bytes:
    """Return a document as one line of NDJSON, or as an array of its own if the text contains line breaks."""
    return b"[\n" + text + b"\n]\n" if b"\n" in text else text + b"\n"


def _last_byte(file: int, size: int) -> bytes:
    os.lseek(file, size - 1, os.SEEK_SET)  # what is written is appended all the same
    return os.read(file, 1)
