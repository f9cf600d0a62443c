"""Syncs on several machines share a state in PostgreSQL: their leases, and what happens while it is away."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from runspan.errors import StoreError
from runspan.storage.shared import connect_postgres
from runspan.sync.checkpoint import POSTGRES_SCHEMA, Checkpoint, Due, TrackedRun, TrackState, sync_binding
from runspan.sync.request_budget import RequestBudget
from support.cli import WAIT, running, runspan
from support.faulty_platform import Faults, platform
from support.receivers import http_receiver
from support.servers.postgres import PASSWORD, OwnPostgres, Postgres
from support.sync import LocalServer, eventually, recent_document, run_ids_of

BINDING = sync_binding("http://a", "http://b/v1/traces")
BACKLOG = Due(backlog=True, until=0, retry_until=0, max_failures=3)


def test_a_worker_that_lost_its_connection_stores_nothing_more(postgres: Postgres) -> None:
    """Its leases end with the connection. What it had not committed is not there, and it cannot go on by another one,
    although the database answers."""
    url = postgres.database()
    with ExitStack() as stack:
        here, there = (stack.enter_context(closing(connect_postgres(url, POSTGRES_SCHEMA))) for _ in range(2))
        lost, other = (stack.enter_context(closing(Checkpoint(each, BINDING))) for each in (here, there))
        lost.save(TrackedRun("run", 1, workflow="wf"))
        lost.commit()
        (run,) = lost.due_runs(BACKLOG, 9)
        assert lost.lease_lists()
        lost.commit()
        other.free_leases()
        assert not other.due_runs(BACKLOG, 9)
        assert not other.lease_lists()
        other.commit()

        run.state, run.due = TrackState.ENDED, None
        lost.save(run)
        query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND granted"
        ((process,),) = there.execute(query)
        there.execute("SELECT pg_terminate_backend(?)", process)
        eventually(lambda: there.execute(query) == [])
        assert here.is_reachable()
        for _ in range(2):
            with pytest.raises(StoreError):
                lost.save(run)
            with pytest.raises(StoreError):
                lost.commit()
        other.free_leases()
        assert not other.has_other_workers
        assert [each.run_id for each in other.due_runs(BACKLOG, 9)] == ["run"]
        assert other.lease_lists()


def test_a_transaction_that_has_failed_is_not_committed(postgres: Postgres) -> None:
    """PostgreSQL would discard it, and say so in a place where nobody looks."""
    with closing(connect_postgres(postgres.database(), POSTGRES_SCHEMA)) as database:
        session = database.session()
        with closing(session):
            session.begin()
            session.execute("INSERT INTO workers VALUES (7)")
            with pytest.raises(StoreError, match="division by zero"):
                session.execute("SELECT 1 / 0")
            with pytest.raises(StoreError, match="failed before"):
                session.commit()
        with pytest.raises(StoreError, match="is closed"):
            session.begin()
        assert database.execute("SELECT * FROM workers") == []


def test_a_machine_that_vanishes_is_noticed_within_the_stated_time(postgres: Postgres) -> None:
    """By the server, which then ends the session and its leases: this is how often it asks."""
    from runspan.storage.postgres import LOST_AFTER

    with (
        closing(connect_postgres(postgres.database(), POSTGRES_SCHEMA)) as database,
        closing(database.session()) as session,
    ):
        names = ("idle", "interval", "count")
        idle, interval, count = (int(session.execute(f"SHOW tcp_keepalives_{name}").fetchone()[0]) for name in names)
        (timeout,) = session.execute("SELECT setting FROM pg_settings WHERE name = 'tcp_user_timeout'").fetchone()
    assert 0 < idle + interval * count <= LOST_AFTER
    assert 0 < int(timeout) <= 1000 * LOST_AFTER


def test_machines_have_one_budget_for_each_key(postgres: Postgres) -> None:
    """Threads of two machines with different clocks get no more than one alone, another key its own."""
    url, per_minute = postgres.database(), 50
    waits: list[str] = []
    found: Counter[str] = Counter()
    with ExitStack() as stack:

        def take(name: str, account: bytes, clock: float) -> None:
            database = stack.enter_context(closing(connect_postgres(url, POSTGRES_SCHEMA)))
            budget = RequestBudget(
                per_minute, database, account=account, sleep=lambda _: waits.append(name), wall_clock=lambda: clock
            )
            while found[name] < 60 and budget.acquire(lambda: name in waits):
                found[name] += 1

        threads = [
            threading.Thread(target=take, args=each)
            for each in (("one", b"a", 1e9), ("two", b"a", 2e9), ("other", b"b", 2e9))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert found["one"] + found["two"] == per_minute
    assert found["other"] == per_minute


def test_no_request_is_sent_while_the_budget_cannot_be_counted(own_postgres: OwnPostgres) -> None:
    with closing(connect_postgres(own_postgres.database(), POSTGRES_SCHEMA)) as database:
        slept = threading.Event()
        budget = RequestBudget(600, database, account=b"a", sleep=lambda _: slept.set())
        assert budget.acquire(bool)
        own_postgres.halt()
        try:
            assert not budget.acquire(slept.is_set)
        finally:
            own_postgres.start()
        eventually(lambda: budget.acquire(bool))


@pytest.mark.parametrize("follow", [True, False])
def test_a_sync_goes_on_when_the_database_has_restarted(
    tmp_path: Path, source: LocalServer, own_postgres: OwnPostgres, follow: bool
) -> None:
    """No run is lost, and only what had not been recorded is sent again."""
    file = tmp_path / "state.url"
    file.write_text(own_postgres.database())
    names = {f"run_{number}" for number in range(60)}
    source.fill(*(recent_document(name, workflowId=f"wf_{name[-1]}") for name in names))
    with (
        http_receiver() as receiver,
        platform(source.url, faults=Faults(slow=1.0), pause=0.3) as mock,
        closing(connect_postgres(file.read_text(), POSTGRES_SCHEMA)) as database,
    ):

        def sent() -> list[str]:
            with receiver.lock:
                return [run_id for post in receiver.accepted for run_id in run_ids_of(post)]

        def acked() -> set[str]:
            return {run_id for (run_id,) in database.execute("SELECT run_id FROM runs WHERE state = 1")}

        args = ("sync", mock.url, "--endpoint", receiver.url, "--state-url-file", file, "--concurrency", 2)
        with running(*args, *["--follow"] * follow, cwd=tmp_path) as syncing:
            eventually(lambda: bool(acked()))
            recorded = acked()
            own_postgres.halt("immediate")
            syncing.wait_for("beginning again in 1 s, where the state says")
            own_postgres.start()
            eventually(lambda: set(sent()) == names)
            assert syncing.process.poll() is None or not follow
            assert (syncing.end() if follow else syncing.process.wait(WAIT)) == 0
        eventually(lambda: acked() == names)
        twice = {run_id for run_id, times in Counter(sent()).items() if times > 1}
        assert not twice & recorded
        assert not any(PASSWORD in line for line in syncing.lines)


def test_a_database_that_is_away_at_the_start_ends_the_sync(tmp_path: Path) -> None:
    """With the reason, and without the password; so do an option too many, and a URL of something else."""
    pytest.importorskip("psycopg")
    args = ("sync", "http://127.0.0.1:1", "--endpoint", "http://127.0.0.1:1")
    away = runspan(*args, code=10, RUNSPAN_STATE="postgresql://me:cret@127.0.0.1:1/runspan")
    assert "PostgreSQL database runspan at 127.0.0.1:1: the database with the state of syncs does not" in away.stderr
    assert "Connection refused" in away.stderr
    assert "cret" not in away.stderr
    refused = runspan(*args, "--state", "postgresql://me:cret@db/runspan", code=2)
    assert "a URL without a password" in refused.stderr
    both = runspan(*args, "--state", "postgresql://me@db/runspan", "--state-file", tmp_path / "cp", code=2)
    assert re.search("--state-file: expected no other state than that of --state", both.stderr)


def test_a_sync_that_waits_in_vain_for_the_database_ends(
    tmp_path: Path, source: LocalServer, own_postgres: OwnPostgres
) -> None:
    """After ``--retry-max-time``, with its report and the reason."""
    file = tmp_path / "state.url"
    file.write_text(own_postgres.database())
    source.fill(*(recent_document(f"run_{number}") for number in range(40)))
    with http_receiver() as receiver, platform(source.url, faults=Faults(slow=1.0), pause=0.5) as mock:
        args = ("sync", mock.url, "--endpoint", receiver.url, "--state-url-file", file, "--concurrency", 1)
        with running(*args, "--retry-max-time", "2s", cwd=tmp_path) as syncing:
            eventually(lambda: bool(receiver.accepted))
            own_postgres.halt()
            try:
                assert syncing.process.wait(WAIT) == 10
            finally:
                own_postgres.start()
            syncing.read_to_the_end()
    assert any("the database with the state of syncs does not answer" in line for line in syncing.lines)


def refuse_changes(url: str, kind: str) -> None:
    """Let a database answer, and take no change of a run."""
    with closing(connect_postgres(url, POSTGRES_SCHEMA)) as database:
        database.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"'BEGIN RAISE EXCEPTION ''nothing is taken'' USING ERRCODE = ''{kind}''; END'"
        )
        database.execute("CREATE TRIGGER refuse BEFORE UPDATE ON runs EXECUTE FUNCTION refuse()")


@pytest.mark.parametrize("kind", ["disk_full", "check_violation"])
def test_a_database_that_refuses_what_is_stored_ends_the_sync(
    tmp_path: Path, source: LocalServer, postgres: Postgres, kind: str
) -> None:
    """With its own words. A disk may have space again, so that is tried for ``--retry-max-time``, and not for ever,
    although the database can be connected each time."""
    file = tmp_path / "state.url"
    file.write_text(postgres.database())
    refuse_changes(file.read_text(), kind)
    args = ("sync", source.url, "--endpoint", "http://127.0.0.1:1", "--state-url-file", file)
    with running(*args, "--retry-max-time", "2s", cwd=tmp_path) as syncing:
        assert syncing.process.wait(WAIT) == 10
        syncing.read_to_the_end()
    assert any("nothing is taken" in line for line in syncing.lines)
    assert any("beginning again" in line for line in syncing.lines) == (kind == "disk_full")


@pytest.mark.parametrize("follow", [True, False])
def test_a_sync_that_is_stopped_while_it_waits_for_the_database_is_not_complete(
    tmp_path: Path, source: LocalServer, postgres: Postgres, follow: bool
) -> None:
    file = tmp_path / "state.url"
    file.write_text(postgres.database())
    refuse_changes(file.read_text(), "disk_full")
    args = ("sync", source.url, "--endpoint", "http://127.0.0.1:1", "--state-url-file", file)
    with running(*args, *["--follow"] * follow, cwd=tmp_path) as syncing:
        syncing.wait_for("beginning again")
        assert syncing.end() == (0 if follow else 130)


def test_ids_of_any_length_are_tracked(tmp_path: Path, source: LocalServer, postgres: Postgres) -> None:
    """An index of PostgreSQL takes only so much; escaped characters need the most."""
    file = tmp_path / "state.url"
    file.write_text(postgres.database())
    letters = random.Random(1)  # what can be compressed may be longer
    long = "".join(letters.choices("\\\0aäß€\N{GRINNING FACE}", k=9000))
    source.fill(*(recent_document(name, workflowId=long + name) for name in ("a", "b", "c" * 512)))
    with http_receiver() as receiver:
        args = ("--state-url-file", file, "--dead-letter", tmp_path / "dead-letters")
        runspan("sync", source.url, "--endpoint", receiver.url, *args)
        assert sum(len(run_ids_of(post)) for post in receiver.accepted) == 3
