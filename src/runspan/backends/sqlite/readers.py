"""Connections that read the store, shared by the threads of a server."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runspan.errors import StoreError
from runspan.storage.sqlite_file import is_damage, open_read_only, store_error


class ConnectionPool:
    """Idle connections that cannot write. A pool and not one connection a thread: servers start threads per request.

    check_files: raises StoreError when the path leads to another file, which a new connection would open.
    on_damage: called for each read that SQLite or a row's values of other types than were stored show to be damaged.
    """

    def __init__(self, path: Path, check_files: Callable[[], None], on_damage: Callable[[], None]) -> None:
        self._path = path
        self._check_files = check_files
        self._on_damage = on_damage
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for this caller alone. Errors of SQLite and damaged text are raised as StoreError."""
        if self._closed:
            raise StoreError("the store is closed", where=str(self._path))
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                self._check_files()
                connection = open_read_only(self._path, pragmas=("cache_size = -8192",))
            try:
                with self.value_errors():
                    yield connection
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            if is_damage(error):
                self._on_damage()
            raise store_error(error, self._path) from error
        self._idle.append(connection)
        if self._closed:
            self.close()

    @contextmanager
    def value_errors(self) -> Iterator[None]:
        """Raise StoreError for values of other types than were stored, which a damaged row may have."""
        try:
            yield
        except (UnicodeDecodeError, AttributeError, TypeError) as error:
            self._on_damage()
            hint = "set it aside with `runspan check --set-aside`, then export the run again; or restore a backup"
            raise StoreError("a stored run is damaged", where=str(self._path), got=str(error), hint=hint) from None

    def close(self) -> None:
        """Close the idle connections; one in use is closed by its user."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
