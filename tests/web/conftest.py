"""Fixtures of the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runspan.backends.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty store in the test's directory."""
    with SqliteStore(tmp_path) as store:
        yield store
