"""``connect_shared_state``: the database in which several servers share API keys, sessions, rate limits and quotas."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from runspan.storage.database import PostgresSchema
from runspan.storage.shared import connect_postgres

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

_VERSION: Final = 1


def connect_shared_state(url: str) -> PostgresDatabase:
    """Connect to the database, for keys, sessions, usage and ``SharedWindows``; see ``connect_postgres``."""
    schema = PostgresSchema(
        name="runspan",
        version=_VERSION,
        tables=resources.files("runspan.web").joinpath("state.sql").read_text(encoding="utf-8"),
        title="the database with the API keys",
        away="retry after the seconds in Retry-After; the server's log has the reason",
    )
    return connect_postgres(url, schema)
