"""The servers that a test run shares, each started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.servers import jaeger as jaegers
from support.servers.finding import USED, require
from support.servers.jaeger import Jaeger, start_jaeger
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
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL in which each test makes its own database."""
    server = start_postgres()
    yield server
    server.stop()


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
