"""The source, the target and the state of a sync, new for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runspan.storage.shared import connect_postgres
from runspan.sync.checkpoint import POSTGRES_SCHEMA
from support.sync import LocalServer, Place, local_server


@pytest.fixture
def source(tmp_path: Path) -> Iterator[LocalServer]:
    """A runspan server in the role of the platform."""
    with local_server(tmp_path / "source") as made:
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Iterator[LocalServer]:
    """The runspan server that receives."""
    with local_server(tmp_path / "target") as made:
        yield made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The state file of a sync that has not started."""
    return tmp_path / "checkpoint"


@pytest.fixture(params=["file", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where a new state is: a file, and a database whose URL is in a file ``state.url``."""
    if request.param == "file":
        yield tmp_path / "cp"
        return
    url = request.getfixturevalue("postgres").database()
    (tmp_path / "state.url").write_text(url)
    with closing(connect_postgres(url, POSTGRES_SCHEMA)) as database:
        yield database
