"""The backends of the suite. A further one is another branch of ``backend``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from runspan.backends.sqlite import SqliteStore

from .harness import Harness, StoreByDocument, StoreByOtlp


@pytest.fixture(params=["store-by-document", "store-by-otlp"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with SqliteStore(tmp_path) as store:
        yield {"store-by-document": StoreByDocument, "store-by-otlp": StoreByOtlp}[request.param](store)


@pytest.fixture
def tenant() -> str:
    """A tenant of this test alone."""
    return f"tenant-{uuid4().hex}"
