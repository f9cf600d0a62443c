"""``connect_postgres``: a database that several machines share, if the extra for it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runspan.errors import ConfigError
from runspan.extras import missing_extra

if TYPE_CHECKING:
    from runspan.storage.database import PostgresSchema
    from runspan.storage.postgres import PostgresDatabase


def connect_postgres(url: str, schema: PostgresSchema) -> PostgresDatabase:
    """Connect to PostgreSQL, and create the tables if they do not exist.

    Raises ConfigError for a URL that is none or without the extra ``postgres``, StateUnreachable if PostgreSQL does not
    answer, and StoreError if its tables are not of this version.
    """
    try:
        from runspan.storage.postgres import PostgresDatabase  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error, "a shared state in PostgreSQL") from error
    except ImportError as error:  # psycopg finds no libpq
        raise ConfigError(
            where="a shared state in PostgreSQL",
            expected="psycopg with the library libpq",
            got=" ".join(str(error).split())[:200],
            hint="pip install 'runspan[postgres]'",
        ) from error
    return PostgresDatabase(url, schema)
