"""The backends of the suite: another one is a further branch of ``backend``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from conformance.harness import Harness, StoreByDocument, StoreByOtlp
from conformance.jaeger import jaeger_by_otlp
from conformance.opensearch import jaeger_on_opensearch_by_otlp
from conformance.remote import tempo_by_otlp
from runspan.backends.sqlite import SqliteStore


@pytest.fixture(
    params=[
        "store-by-document",
        "store-by-otlp",
        "tempo",
        "jaeger-memory",
        "jaeger-badger",
        # Its lists are several searches each, and new indices take time.
        pytest.param("jaeger-opensearch", marks=pytest.mark.campaign),
    ]
)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    if request.param == "tempo":
        harness = tempo_by_otlp(request.getfixturevalue("tempo"))
        yield harness
        harness.close()
        return
    if request.param == "jaeger-opensearch":
        settled = jaeger_on_opensearch_by_otlp(request.getfixturevalue("jaeger_opensearch"))
        yield settled
        settled.close()
        return
    if request.param.startswith("jaeger"):
        jaeger = jaeger_by_otlp(request.getfixturevalue(request.param.replace("-", "_")))
        jaeger.keeps_all_spans = request.param != "jaeger-badger"
        yield jaeger
        jaeger.close()
        return
    with SqliteStore(tmp_path, index=True) as store:
        yield {"store-by-document": StoreByDocument, "store-by-otlp": StoreByOtlp}[request.param](store)


@pytest.fixture
def tenant() -> str:
    """A tenant of this test alone."""
    return f"tenant-{uuid4().hex}"
