"""The embedded store of a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runspan.backends.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Yield an empty store."""
    with SqliteStore(tmp_path) as opened:
        yield opened
