"""Statistics about many runs, kept in the index."""

from __future__ import annotations

import sqlite3

from runspan.codec.facts import RunFacts


def apply(connection: sqlite3.Connection, tenant: str, facts: RunFacts, sign: int) -> None:
    """Add the facts of a run, or subtract those that it had before. ``sign``: 1 or -1."""
