"""The texts of runs, by their trigrams."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from runspan.model.document import Run


def add(connection: sqlite3.Connection, rowid: int, run: Run) -> None:
    """Add the text of a run. ``rowid`` was never used before."""


def candidates(connection: sqlite3.Connection, text: str, before_rowid: int) -> Iterator[int]:
    """Yield the ids of runs that may contain a text, the newest first."""
    yield from ()


def drop_before(connection: sqlite3.Connection, time_ms: int) -> None:
    """Delete what only has runs from before a time, in milliseconds since 1970."""
