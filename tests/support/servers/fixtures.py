"""The servers that a test run shares, each started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.servers import jaeger as jaegers
from support.servers import opensearch as opensearches
from support.servers.finding import USED, require
from support.servers.jaeger import Jaeger, start_jaeger
from support.servers.opensearch import (
    FIRST_DAY,
    JaegerOnOpenSearch,
    OpenSearch,
    days_since,
    jaeger_on,
    start_opensearch,
)
from support.servers.postgres import OwnPostgres, Postgres, start_postgres
from support.servers.tempo import IMAGE, Tempo, start_tempo


@pytest.fixture(scope="session")
def tempo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempo]:
    """A Tempo where a run can be searched soon after it was sent, whatever its age."""
    server = start_tempo(require("tempo", IMAGE), tmp_path_factory.mktemp("tempo"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def jaeger_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger with its traces in memory."""
    server = start_jaeger(require("jaeger", jaegers.IMAGE), tmp_path_factory.mktemp("jaeger"), jaegers.MEMORY)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def jaeger_badger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger with its traces in Badger, on disk."""
    server = start_jaeger(require("jaeger", jaegers.IMAGE), tmp_path_factory.mktemp("jaeger"), jaegers.BADGER)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def opensearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearch]:
    """An OpenSearch as it is after installation, which makes what was written visible ten times a second."""
    place = require("opensearch", opensearches.IMAGE, takes_otlp=False)
    server = start_opensearch(place, tmp_path_factory.mktemp("opensearch"))
    server.put("_cluster/settings", {"persistent": {"cluster.max_shards_per_node": 10_000}})
    settings = {"refresh_interval": "100ms", "number_of_shards": 1, "number_of_replicas": 0}
    server.put("_template/refresh", {"index_patterns": ["*jaeger-*"], "order": 9, "settings": settings})
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL in which each test makes its own database."""
    server = start_postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def jaeger_opensearch(opensearch: OpenSearch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JaegerOnOpenSearch]:
    """A Jaeger with its traces in an index for each day, which reads those of all days since the runs of the tests.

    These are so many that its list of services fails, because their names do not fit into one URL.
    """
    age = f"{24 * days_since(FIRST_DAY)}h"
    with jaeger_on(opensearch, tmp_path_factory.mktemp("jaeger"), max_span_age=age) as server:
        yield server


@pytest.fixture(scope="session")
def jaeger_opensearch_90_days(
    opensearch: OpenSearch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JaegerOnOpenSearch]:
    """A Jaeger with its traces in an index for each day, which reads those of the last 90, as docs/backends.md says."""
    with jaeger_on(opensearch, tmp_path_factory.mktemp("jaeger"), max_span_age="2160h") as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL that a test may stop, if it starts it again."""
    server = start_postgres(own=True)
    assert isinstance(server, OwnPostgres)
    yield server
    server.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which servers the run used."""
    if USED:
        terminalreporter.write_line("servers: " + ", ".join(sorted(USED)))
