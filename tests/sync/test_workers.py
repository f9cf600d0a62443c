"""Several syncs share a state file: each run is sent by one of them, also if one of them is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from runspan.delivery import DeadLetters
from runspan.errors import StoreError
from runspan.model.timestamps import SECOND
from runspan.platform_api.schema import RunListItem, RunListPage
from runspan.sync.checkpoint import Checkpoint, Due, TrackedRun, TrackState, sync_binding
from runspan.sync.context import HOUR, ListFilter, SyncConfig, SyncContext
from runspan.sync.list_crawler import ListCrawler
from runspan.sync.request_budget import RequestBudget, account_of
from runspan.sync.worker_lock import FileLock
from support.cli import WAIT, Running, running, runspan
from support.faulty_platform import Faults, platform
from support.receivers import Receiver, http_receiver
from support.sync import LocalServer, Place, eventually, make_directory, recent_document, run_ids_of

BINDING = sync_binding("http://a", "http://b/v1/traces")
BACKLOG = Due(backlog=True, until=0, retry_until=0, max_failures=3)
TRACKED = Due(backlog=False, until=0, retry_until=0, max_failures=3)
RUNS = 60


def workers(place: Place, number: int, stack: ExitStack) -> list[Checkpoint]:
    return [stack.enter_context(closing(Checkpoint(place, BINDING))) for _ in range(number)]


def ids(runs: list[TrackedRun]) -> list[str]:
    return [run.run_id for run in runs]


def fill(checkpoint: Checkpoint, workflows: int = 4, runs: int = 3) -> None:
    """Store a backlog in which the workflows take turns: ``0/0``, ``1/0`` … ``0/1``."""
    for time_ in range(runs):
        for number in range(workflows):
            checkpoint.save(TrackedRun(f"{number}/{time_}", 1 + time_ * workflows + number, workflow=f"wf_{number}"))
    checkpoint.commit()


def test_one_worker_gets_the_oldest_runs_of_all_workflows(place: Place) -> None:
    """Not those in progress, and in the order of their start, although a workflow is read in pieces."""
    with closing(Checkpoint(place, BINDING)) as checkpoint:
        fill(checkpoint, workflows=3, runs=100)
        taken: list[TrackedRun] = []
        while lot := checkpoint.due_runs(BACKLOG, 40, taken):
            taken += lot
        assert [run.time for run in taken] == list(range(1, 301))


def test_each_workflow_has_one_worker(place: Place) -> None:
    """Each gets its share, what is released goes to the other, and what a closed one had too."""
    with ExitStack() as stack:
        one, two = workers(place, 2, stack)
        fill(one)
        first = one.due_runs(BACKLOG, 100)
        one.commit()
        assert {run.workflow for run in first} == {"wf_0", "wf_1"}
        second = two.due_runs(BACKLOG, 100)
        two.commit()
        assert {run.workflow for run in second} == {"wf_2"}  # of the two that are left, the other may take the last
        assert {run.workflow for run in one.due_runs(BACKLOG, 100)} == {"wf_0", "wf_1"}
        one.commit()
        one.release({"wf_1"})
        one.commit()
        assert {run.workflow for run in two.due_runs(BACKLOG, 100)} == {"wf_0", "wf_2"}
        two.commit()
        one.close()
        eventually(lambda: len({run.workflow for run in two.due_runs(BACKLOG, 100)}) == 4)


def test_a_change_in_the_list_is_not_lost_while_another_worker_has_the_run(place: Place) -> None:
    """The run is fetched again, unless the fetched document is the one that the list shows by then."""
    with ExitStack() as stack:
        lists, worker = workers(place, 2, stack)
        lists.save(TrackedRun("run", 1, list_fingerprint=b"old", workflow="wf"))
        lists.commit()
        for shown, fetched, again in ((b"new", b"old", ["run"]), (b"newer", b"newer", [])):
            (run,) = worker.due_runs(BACKLOG, 9) or worker.due_runs(TRACKED, 9)
            worker.commit()
            (listed,) = lists.get(["run"]).values()
            listed.list_fingerprint = shown
            lists.list_changed(listed, at_once=True)
            lists.commit()
            run.state, run.due, run.document_fingerprint = TrackState.ENDED, None, fetched
            worker.save(run)
            worker.commit()
            assert ids(worker.due_runs(TRACKED, 9)) == again
            worker.commit()
        lists.recount()
        assert lists.counts == {TrackState.ENDED: 1}


def test_a_killed_worker_loses_its_leases_and_a_stopped_one_keeps_them(tmp_path: Path) -> None:
    """The system releases the lock of a process that ends, and of no other."""
    path = tmp_path / "cp"
    code = f"""
import sys, time
from pathlib import Path
from sync.test_workers import *
checkpoint = Checkpoint(Path({str(path)!r}), BINDING)
fill(checkpoint)
assert checkpoint.lease_lists()
print(*sorted({{run.workflow for run in checkpoint.due_runs(BACKLOG, 100)}}), flush=True)
checkpoint.commit()
print("leased", flush=True)
time.sleep(600)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline().split() == ["wf_0", "wf_1", "wf_2", "wf_3"]
            assert child.stdout.readline() == "leased\n"
            with closing(Checkpoint(path, BINDING)) as checkpoint:
                child.send_signal(signal.SIGSTOP)
                checkpoint.free_leases()
                assert checkpoint.has_other_workers
                assert not checkpoint.due_runs(BACKLOG, 100)
                assert not checkpoint.lease_lists()
                checkpoint.commit()
                child.kill()
                child.wait(WAIT)
                checkpoint.free_leases()
                assert not checkpoint.has_other_workers
                assert len(checkpoint.due_runs(BACKLOG, 100)) == 12
                assert checkpoint.lease_lists()
        finally:
            child.kill()


def test_a_number_has_one_worker(tmp_path: Path) -> None:
    """The lowest free one; its file is removed at the end."""
    first, second = (FileLock(tmp_path / "cp") for _ in range(2))
    assert (first.number, second.number) == (1, 2)
    assert [first.has_ended(number) for number in (1, 2, 3)] == [False, False, True]
    first.close()
    assert second.has_ended(1)
    third = FileLock(tmp_path / "cp")
    assert third.number == 1
    for lock in (second, third):
        lock.close()
        lock.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_keeps_no_number(tmp_path: Path) -> None:
    """A sync that follows opens it again and again."""
    path = tmp_path / "cp"
    Checkpoint(path, BINDING).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE runs")
    for _ in range(2):
        with pytest.raises(StoreError, match="no such table"):
            Checkpoint(path, BINDING)
        assert not list(tmp_path.glob("*.worker-*"))


def test_a_link_to_a_state_file_is_the_same_file(tmp_path: Path) -> None:
    """Whoever opens it by another name has another number, and does not take what is leased."""
    (tmp_path / "link").symlink_to(tmp_path / "cp")
    with closing(Checkpoint(tmp_path / "link", BINDING)) as one:
        fill(one)
        assert len(one.due_runs(BACKLOG, 100)) == 12
        one.commit()
        with closing(Checkpoint(tmp_path / "cp", BINDING)) as two:
            assert two.has_other_workers
            assert not two.due_runs(BACKLOG, 100)


def test_workers_have_one_budget_for_each_key(tmp_path: Path) -> None:
    """Threads of two workers get no more than one alone, a restarted one nothing anew, another key its own."""
    path = tmp_path / "cp"
    Checkpoint(path, BINDING).close()
    now = [1_800_000_000.0]
    slept: list[float] = []

    def budget(key: str) -> RequestBudget:
        account = account_of("http://a", key)
        return RequestBudget(600, path, account=account, sleep=slept.append, wall_clock=lambda: now[0])

    def take(limiter: RequestBudget, at_most: int) -> int:
        """Take until the limiter sleeps, and return how many requests it allowed."""
        taken, before = 0, len(slept)
        while taken < at_most and limiter.acquire(lambda: len(slept) > before):
            taken += 1
        return taken

    with ExitStack() as stack:
        one, two, other = (stack.enter_context(closing(budget(key))) for key in ("k1", "k1", "k2"))
        found: Counter[str] = Counter()
        threads = [
            threading.Thread(target=lambda name, limiter: found.update({name: take(limiter, 70)}), args=each)
            for each in (("one", one), ("two", two))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert found.total() == 100
        assert set(slept) == {10.1}  # of one thread, or of both at the same moment
        assert take(other, 200) == 100
        restarted = stack.enter_context(closing(budget("k1")))
        assert take(restarted, 200) == 0
        now[0] += 10.1
        assert take(restarted, 200) == 100
        now[0] -= 3600.0  # the clock is set back
        assert take(restarted, 200) == 100
    assert account_of("http://a", None) == b""


def test_a_worker_knows_that_others_have_used_up_the_budget(tmp_path: Path) -> None:
    """Not if it did so itself, and not for longer than it is used up."""
    now = [1_800_000_000.0]

    def budget() -> RequestBudget:
        clock = {"wall_clock": lambda: now[0], "clock": lambda: now[0]}
        return RequestBudget(600, tmp_path / "cp", account=b"a", sleep=lambda _: None, **clock)

    def take(limiter: RequestBudget, number: int) -> int:
        """Return how many of so many requests were allowed."""
        asked = iter([False] * number + [True] * 9)
        return sum(limiter.acquire(lambda: next(asked)) for _ in range(number))

    with closing(budget()) as one, closing(budget()) as two:
        assert take(one, 95) == 95
        assert not one.is_contested
        assert take(two, 9) == 5
        assert two.is_contested
        assert take(one, 1) == 0
        assert not one.is_contested
        now[0] += 60
        assert not two.is_contested
        assert take(two, 2) == 2
        assert not two.is_contested


def test_a_request_that_waited_for_the_file_counts_those_that_did_not(tmp_path: Path) -> None:
    """Its time may be some seconds old when it is counted."""
    now = [1_800_000_000.0]
    waits: list[float] = []

    def late(seconds: float) -> float:
        waits.append(seconds)
        now[0] += 10.1  # less than it was told, since its clock is behind
        return seconds

    def budget(behind: float) -> RequestBudget:
        return RequestBudget(60, tmp_path / "cp", account=b"", sleep=late, wall_clock=lambda: now[0] - behind)

    with closing(budget(0)) as one, closing(budget(5)) as two:
        assert all(one.acquire(bool) for _ in range(10))
        assert two.acquire(bool)
        assert len(waits) == 2
        assert all(one.acquire(bool) for _ in range(9))
        assert len(waits) == 2


def test_requests_that_count_no_more_are_deleted(tmp_path: Path) -> None:
    """Also where the limit is never reached, those of other keys, and those of a clock that was set back."""
    now = [1_800_000_000.0]

    def budget(account: bytes) -> RequestBudget:
        return RequestBudget(900, tmp_path / "cp", account=account, sleep=lambda _: None, wall_clock=lambda: now[0])

    def stored() -> int:
        with closing(sqlite3.connect(tmp_path / "cp")) as connection:
            count: int = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
            return count

    with closing(budget(b"a")) as one, closing(budget(b"b")) as other:
        for step in (15.0, -15.0):
            for limiter in (other, *[one] * 50):
                now[0] += step
                assert limiter.acquire(bool)
            assert stored() <= 20


def test_resend_is_for_one_sync_alone(tmp_path: Path, source: LocalServer, target: LocalServer) -> None:
    """Another one may be about to store what it has sent of the same runs."""
    binding = sync_binding(source.url, f"{target.url}/v1/traces")
    with closing(Checkpoint(tmp_path / "cp", binding)):
        args = ("sync", source.url, "--endpoint", target.url, "--state-file", tmp_path / "cp", "--resend", "1h")
        assert "stop the others" in runspan(*args, code=2).stderr


def test_a_list_counts_as_read_by_a_scan_that_started_later(tmp_path: Path, place: Place) -> None:
    """A sync that ends relies on the worker that reads the lists, once that has read each of them anew to its end."""
    filters = tuple(map(ListFilter, "ab"))
    now = [HOUR]
    began: list[str] = []
    with DeadLetters(str(tmp_path / "letters")) as letters, ExitStack() as stack:
        checkpoints = workers(place, 2, stack)

        def crawler(checkpoint: Checkpoint, config: SyncConfig) -> ListCrawler:
            clock = {"clock": lambda: now[0], "monotonic": lambda: now[0]}
            return ListCrawler(SyncContext(config, checkpoint, dead_letters=letters, log=print, **clock))

        def read_page(cursor: str | None = None) -> None:
            scan = reader.next_scan(now[0], has_backlog=bool)
            assert scan is not None
            if scan.cursor is None:
                began.append(scan.filter.name)
            item = RunListItem(f"{scan.filter.name} {scan.pages}", now[0], b"", "wf")
            assert reader.add_page(scan, RunListPage((item,), cursor)) is None
            checkpoints[0].commit()
            now[0] += SECOND

        def is_done() -> bool:
            assert second.next_scan(now[0], has_backlog=bool) is None
            checkpoints[1].commit()
            return second.done

        reader = crawler(checkpoints[0], SyncConfig(filters, follow=True, poll=2 * SECOND))
        for _ in filters:
            read_page()
        read_page("c")
        second = crawler(checkpoints[1], SyncConfig(filters))
        began.clear()
        assert not is_done()
        read_page()
        assert not is_done(), "it started before"
        for _ in range(9):
            read_page()
            if is_done():
                break
        assert second.done
        assert set(began) == {"/a", "/b"}


def workers_of(receiver: Receiver) -> dict[str, list[str]]:
    """Return the ids of the runs of each request, by the name of the service that sent it."""
    sent: dict[str, list[str]] = {"one": [], "two": []}
    with receiver.lock:
        posts = list(receiver.accepted)
    for post in posts:
        (service,) = (
            each.value.string_value
            for each in post.message.resource_spans[0].resource.attributes
            if each.key == "service.name"
        )
        sent[service] += run_ids_of(post)
    return sent


def test_two_syncs_divide_the_runs_and_one_continues_when_the_other_is_killed(
    tmp_path: Path, place: Place, source: LocalServer
) -> None:
    """Both send, no run is missing, and only what the killed one had not recorded is sent twice. New runs are found,
    although it was the killed one that read the list. Together they keep to the limit of requests."""
    path, per_minute, concurrency = tmp_path / "cp", 600, 2
    state = ("--state-file", path) if isinstance(place, Path) else ("--state-url-file", tmp_path / "state.url")

    def stored(query: str) -> list[Any]:
        if not isinstance(place, Path):
            return place.execute(query)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(query).fetchall()

    with (
        http_receiver() as receiver,
        platform(source.url, faults=Faults(slow=1.0), pause=0.1) as mock,
        ExitStack() as stack,
    ):

        def started(service: str) -> Running:
            args = ("sync", mock.url, "--endpoint", receiver.url, *state, "--service-name", service)
            options = ("--follow", "--poll", "1s", "--concurrency", concurrency, "--requests-per-minute", per_minute)
            return stack.enter_context(running(*args, *options, cwd=make_directory(tmp_path / service)))

        one = started("one")
        eventually(lambda: bool(mock.paths) and stored("SELECT worker FROM lists") == [(1,)])
        two = started("two")
        eventually(lambda: stored("SELECT number FROM workers ORDER BY 1") == [(1,), (2,)])
        names = [f"run_{number}" for number in range(RUNS)]
        source.fill(*(recent_document(name, workflowId=f"wf_{number % 6}") for number, name in enumerate(names)))
        eventually(lambda: all(workers_of(receiver).values()))
        recorded = {run_id for (run_id,) in stored("SELECT run_id FROM runs WHERE state = 1")}
        assert one.end(signal.SIGKILL) == -signal.SIGKILL
        by_one = workers_of(receiver)["one"]
        assert len(by_one) < RUNS
        source.put(recent_document("late", workflowId="wf_new"))
        eventually(lambda: {*by_one, *workers_of(receiver)["two"]} == {*names, "late"})
        assert two.end() == 0
        by_two = workers_of(receiver)["two"]
        assert len(by_one) == len(set(by_one))
        assert len(by_two) == len(set(by_two))
        assert stored("SELECT count(*) FROM runs WHERE state = 1") == [(RUNS + 1,)]
        assert not {*by_one} & {*by_two} & recorded
        assert mock.most_in(10.0) <= per_minute // 6 + 2 * (concurrency + 1)
