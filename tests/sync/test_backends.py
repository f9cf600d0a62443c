"""Sync into an unmodified Tempo and Jaeger: at each moment they return what the platform has."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from runspan.backends import connect
from runspan.contracts import Document
from runspan.errors import NotFound
from support.cli import generated
from support.faulty_platform import EVERY_KIND, platform
from support.sync import LocalServer, eventually, run_document, sync_command


@dataclass
class Backend:
    """otlp: Its OTLP receiver. query: Its URL for ``connect``."""

    otlp: str
    query: str


@pytest.fixture(params=["tempo", "jaeger-memory", "jaeger-badger"])
def backend(request: pytest.FixtureRequest) -> Backend:
    server = request.getfixturevalue(request.param.replace("-", "_"))
    return Backend(server.otlp, f"{request.param.partition('-')[0]}+{server.url}")


def test_runs_arrive_and_are_followed(backend: Backend, source: LocalServer, tmp_path: Path) -> None:
    """Despite faults of the platform: many finished runs, and one from pending to its end and a change afterwards."""
    tenant = f"tenant-{uuid4().hex}"
    texts = generated(60, seed=int(uuid4().hex[:6], 16), unfinished=True)
    source.fill(*texts.values())
    with (
        platform(source.url, faults=EVERY_KIND, seed=3, pause=0.01) as mock,
        closing(connect(backend.query, services=["runspan"])) as reader,
    ):

        def same(run_id: str) -> bool:
            try:
                return reader.document(run_id, tenant) == Document(source.store.document(run_id).text)
            except NotFound:
                return False

        def sync() -> None:
            sync_command(mock.url, backend.otlp, tmp_path / "checkpoint", "--tenant", tenant)

        for status in ("pending", "running", "suspended", "completed", "failed"):
            source.put(run_document("run_live", status))
            sync()
            eventually(lambda: same("run_live"), f"{status} was not read back")
        for run_id in texts:
            eventually(lambda: same(run_id), run_id)  # noqa: B023  # called in this iteration
