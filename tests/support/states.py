"""Where API keys, sessions, rate limits and usage are kept: ``state`` runs a test over files and over PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runspan.cli.state import KEYS_FILE
from runspan.web.api_keys import ApiKeyStore
from runspan.web.sessions import SessionStore
from runspan.web.shared_state import connect_shared_state
from runspan.web.usage import USAGE_FILE, Quotas, UsageStore
from runspan.web.windows import LocalWindows, SharedWindows, Windows

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase


class State:
    """A state of its own. Each handle that it opens is independent of the others, as those of other processes are.

    location: The file of the keys, or the URL of the database. args: The same for the command line.
    """

    def __init__(self, location: Path | str, args: Sequence[object]) -> None:
        self.location = location
        self.args = args
        self._opened = ExitStack()

    @property
    def is_shared(self) -> bool:
        return isinstance(self.location, str)

    def keys(self, clock: Callable[[], int] = time.time_ns) -> ApiKeyStore:
        database = self.database() if self.is_shared else self.location
        return self._opened.enter_context(closing(ApiKeyStore(database, clock=clock)))

    def sessions(self, keys: ApiKeyStore, clock: Callable[[], int] = time.time_ns) -> SessionStore:
        database = self.database() if isinstance(self.location, str) else self.location.with_name("sessions")
        return self._opened.enter_context(closing(SessionStore(database, keys, clock=clock)))

    def windows(self) -> Windows:
        return SharedWindows(self.database()) if self.is_shared else LocalWindows()

    def usage(self, quotas: Quotas | None = None, clock: Callable[[], int] = time.time_ns) -> UsageStore:
        database = self.database() if isinstance(self.location, str) else self.location.with_name(USAGE_FILE)
        return self._opened.enter_context(closing(UsageStore(database, quotas, clock=clock)))

    def database(self) -> PostgresDatabase:
        return self._opened.enter_context(closing(connect_shared_state(str(self.location))))

    def execute(self, statement: str, file: str = KEYS_FILE) -> list[Any]:
        """Behind the back of all handles. file: Which one has the table, if it is in a file."""
        if isinstance(self.location, str):
            return self.database().execute(statement)
        with closing(sqlite3.connect(self.location.with_name(file), isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def close(self) -> None:
        self._opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    """A new state, of each kind in turn."""
    if request.param == "sqlite":
        opened = State(tmp_path / KEYS_FILE, ["--data", tmp_path])
    else:
        file = tmp_path / "state.url"
        file.write_text(request.getfixturevalue("postgres").database() + "\n")
        opened = State(file.read_text().strip(), ["--data", tmp_path, "--state-url-file", file])
    yield opened
    opened.close()
