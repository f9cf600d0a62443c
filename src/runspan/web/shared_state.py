"""``connect_shared_state``: the database in which several servers share API keys, sessions, rate limits and quotas."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from runspan.errors import ConfigError
from runspan.extras import missing_extra

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

_SCHEMA_NAME: Final = "runspan"
_VERSION: Final = 1


def connect_shared_state(url: str) -> PostgresDatabase:
    """Connect to PostgreSQL, and create the tables of keys, sessions, usage and ``SharedWindows`` if they do not exist.

    Raises ConfigError for a URL that is none or without the extra ``postgres``, StateUnreachable if PostgreSQL does not
    answer, and StoreError if its tables are not of this version.
    """
    try:
        from runspan.storage.postgres import PostgresDatabase, PostgresSchema  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error, "a shared state in PostgreSQL") from error
    except ImportError as error:  # psycopg finds no libpq
        raise ConfigError(
            where="a shared state in PostgreSQL",
            expected="psycopg with the library libpq",
            got=" ".join(str(error).split())[:200],
            hint="pip install 'runspan[postgres]'",
        ) from error
    tables = resources.files("runspan.web").joinpath("state.sql").read_text(encoding="utf-8")
    return PostgresDatabase(url, PostgresSchema(_SCHEMA_NAME, _VERSION, tables))
