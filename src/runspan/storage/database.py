"""``Database``: what the tables that servers share need of SQLite and of PostgreSQL; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Database(Protocol):
    """Tables that any thread, and other processes, read and write at once."""

    def execute(self, statement: str, *values: object) -> list[Any]:
        """Execute a statement as a transaction of its own, and return its rows.

        It is of the SQL that SQLite and PostgreSQL have in common, with ``?`` for each value. Raises StoreError.
        """
        ...

    def transaction(self) -> AbstractContextManager[Callable[..., list[Any]]]:
        """Yield ``execute`` for the statements of one transaction.

        The end of the block commits them; if it raises, none has an effect. Raises StoreError.
        """
        ...

    def version(self) -> int | None:
        """Return a number that changes with each commit of another process; None if that costs as much as reading."""
        ...

    def close(self) -> None:
        """Close it. Idempotent."""
        ...
