"""A watched folder, and a real store to which its files are sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runspan import create_app
from runspan.backends.sqlite import SqliteStore
from support.watch import Bench
from support.web import serving


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "data") as store:
        yield store


@pytest.fixture
def bench(tmp_path: Path, store: SqliteStore) -> Iterator[Bench]:
    """Watches a folder for a real receiver over a real store."""
    (tmp_path / "in").mkdir()
    with serving(create_app(store, store)) as client:
        bench = Bench(tmp_path / "in", str(client.base_url))
        yield bench
        bench.state.close()
