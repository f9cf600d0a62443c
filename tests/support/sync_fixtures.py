"""Where a sync pulls from, where it sends to, and where it remembers: fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sync import Place, place


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Place]:
    """A runspan server that stands for the platform."""
    with place(tmp_path / "source") as made:
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Place]:
    """The runspan server that receives."""
    with place(tmp_path / "target") as made:
        yield made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a sync that has not begun."""
    return tmp_path / "checkpoint"
