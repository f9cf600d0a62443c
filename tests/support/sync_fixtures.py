"""The source, the target and the state file of a sync, new for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sync import LocalServer, local_server


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
