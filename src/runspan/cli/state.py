"""``state``: the options that say where API keys and sessions are kept, and what opens them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from runspan.cli import options
from runspan.errors import ConfigError, StoreError
from runspan.web.api_keys import ApiKeyStore

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

KEYS_FILE: Final = "keys.sqlite3"


@dataclass(frozen=True, slots=True)
class StateOptions:
    """The values of ``state``."""

    data: str
    state_url: str
    state_url_file: Path | None

    def connect(self) -> PostgresDatabase | None:
        """Connect to the database that several servers share; None if the state is in the files of ``data``."""
        url = options.read_state_url(self.state_url, self.state_url_file)
        if not url:
            return None
        from runspan.web.shared_state import connect_shared_state  # noqa: PLC0415

        return connect_shared_state(url)

    @contextmanager
    def open_keys(self, *, create: bool) -> Iterator[ApiKeyStore]:
        """Open the API keys until the block ends. Raises ConfigError if there is no file of them, unless ``create``."""
        database = self.connect()
        if database is not None:
            keys = ApiKeyStore(database)
        elif create or Path(self.data, KEYS_FILE).exists():
            keys = create_key_store(self.data)
        else:
            raise ConfigError(
                "no API keys are kept here",
                where=self.data,
                hint="name the server's directory with --data, or its --state, or create a key: runspan keys create "
                "--data DIR --name NAME",
            )
        try:
            yield keys
        finally:
            keys.close()


state = options.grouped(
    "state",
    StateOptions,
    options.data,
    options.state_url(
        default="files in --data",
        help="PostgreSQL database with the API keys, sessions and rate limits that several servers share, such as "
        "postgresql://runspan@db/runspan. A password only in the variable, or in --state-url-file.",
    ),
)
"""Pass ``state``, a ``StateOptions``, to a command."""


def create_key_store(data: str) -> ApiKeyStore:
    """Open the key store of a data directory, and create both if they do not exist.

    A warning is printed if other users of this machine can read or change the file. StoreError if the directory cannot
    be created.
    """
    path = Path(data, KEYS_FILE)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            "cannot create the data directory",
            where=data,
            got=error.strerror or str(error),
            hint="name another one with --data, or allow this user to write there",
        ) from None
    store = ApiKeyStore(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        click.echo(f"runspan: {path} is open to other users (mode {mode:04o}); close it: chmod 600 {path}", err=True)
    return store
