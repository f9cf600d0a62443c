"""A sync goes on: refused cursors, exceptions of one item, and errors after which it begins again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runspan.delivery import exporter
from runspan.errors import ConfigError, StoreFull
from runspan.model.document import Run
from runspan.model.timestamps import SECOND
from runspan.platform_api import client
from runspan.sync import engine, queues, report, service
from runspan.sync.checkpoint import Checkpoint
from runspan.sync.list_crawler import ListCrawler
from support.cli import runspan
from support.faulty_platform import FaultyPlatform, failure, platform
from support.sync import LocalServer, eventually, following, run_document, sync_command, sync_once
from support.web import listed as listed_ids

BAD = "run_7"
"""The run at which something unexpected happens."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after a moment, after any number of failures."""
    for module in ("context", "list_crawler"):
        monkeypatch.setattr(f"runspan.sync.{module}.retry_at", lambda now, failures: now + SECOND // 50)
    monkeypatch.setattr(service, "_MAX_DELAY", 0.02)


class Log(list[str]):
    """The messages of a sync in this process."""

    def wait_for(self, pattern: str) -> None:
        eventually(lambda: any(re.search(pattern, line) for line in list(self)), pattern)


def listed(server: LocalServer) -> set[str]:
    """Return the ids of all runs of a server."""
    with httpx.Client(base_url=server.url, trust_env=False) as api:
        return set(listed_ids(api))


class RefusedCursors:
    """A platform that refuses the cursors behind its first pages, for as long as it is to."""

    def __init__(self, mock: FaultyPlatform, valid: int) -> None:
        """valid: How many cursors of each walk are accepted."""
        self.refusing = True
        self.refused = 0
        self.walks = 0
        self._valid = valid
        self._pages = 0
        self._real = mock.answer
        mock.answer = self._answer  # type: ignore[method-assign]

    def _answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if path.startswith("/api/v1/runs?"):
            self.walks += "cursor=" not in path
            self._pages = self._pages + 1 if "cursor=" in path else 0
            if self.refusing and self._pages > self._valid:
                self.refused += 1
                return 400, failure("VALIDATION_ERROR", "this cursor has expired")
        return self._real(path, headers)


# Cursors.


def test_refused_cursors_do_not_end_a_sync_that_follows(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """However often they are refused. What was listed arrives meanwhile, and the rest once the walk gets through."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(700)))
    log = Log()
    with platform(source.url) as mock:
        cursors = RefusedCursors(mock, valid=1)
        with following(mock.url, target.url, checkpoint, log=log.append):
            eventually(lambda: cursors.refused >= 12)
            eventually(lambda: listed(target) >= {f"run_{number}" for number in range(300, 700)})
            assert len(listed(target)) < 700
            source.put(run_document("new", start=900))
            eventually(lambda: "new" in listed(target), "new runs wait for the walk")
            log.wait_for("a refused cursor of page 3.*this cursor has expired.*reading it again from its top")
            cursors.refusing = False
            eventually(lambda: listed(target) == listed(source))
    assert target.documents() == source.documents()


def test_a_cursor_that_is_refused_once_is_tried_again(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """The walk does not begin again."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(450)))
    with platform(source.url) as mock:
        cursors = RefusedCursors(mock, valid=0)

        def refuse_once(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            cursors.refusing = cursors.refused == 0
            return cursors._answer(path, headers)

        mock.answer = refuse_once  # type: ignore[method-assign]
        assert sync_once(mock.url, target.url, checkpoint).counts.sent == 450
        assert (cursors.refused, cursors.walks) == (1, 2)  # the full scan, and the one of the top that ends it


def test_a_sync_ends_if_its_walk_gets_no_further(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """It sends what was listed, says that it was the cursor, and has the code of a platform that fails."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(450)))
    with platform(source.url) as mock:
        cursors = RefusedCursors(mock, valid=0)
        args = ("--endpoint", target.url, "--state-file", checkpoint, "--requests-per-minute", 0)
        result = runspan("sync", mock.url, *args, "--retry-max-time", "0.5s", code=9)
        assert "a refused cursor of page 2" in result.stderr
        assert len(listed(target)) == 200
        cursors.refusing = False
        assert sync_command(mock.url, target.url, checkpoint)["counts"]["sent"] == 250


# Exceptions of one item.


def failing(name: str, of: Callable[..., object], is_bad: Callable[..., bool]) -> Callable[..., Any]:
    """Return a function that raises for the bad run, and calls the other one for any other."""

    def function(*args: Any, **options: Any) -> Any:
        if is_bad(*args, **options):
            raise RecursionError(f"in {name}")
        return of(*args, **options)

    return function


def has_bad_run(runs: list[Run], **_: object) -> bool:
    return any(run.id == BAD for run in runs)


ITEMS = pytest.mark.parametrize(
    ("module", "name", "is_bad"),
    [
        (engine, "_parse", lambda text, run_id: run_id == BAD),
        (queues, "fingerprint_of_summary", lambda summary: f'"{BAD}"'.encode() in summary),
        (queues, "plan_send", lambda tracked, *_: tracked.run_id == BAD),
        (queues, "refresh_at", lambda tracked, *_: tracked.run_id == BAD),
        (queues, "batches", lambda items, **_: has_bad_run([each for each in items if isinstance(each, Run)])),
    ],
    ids=["parse", "fingerprint", "plan", "schedule", "encode"],
)


@ITEMS
def test_an_exception_of_one_run_costs_only_this_run(
    source: LocalServer,
    target: LocalServer,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    is_bad: Callable[..., bool],
) -> None:
    """The others arrive, the log names it, and it arrives once it can be handled."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(20)))
    log = Log()
    with monkeypatch.context() as patched:
        patched.setattr(module, name, failing(name, getattr(module, name), is_bad))
        with following(source.url, target.url, checkpoint, log=log.append):
            eventually(lambda: len(target.documents()) >= 19)
            log.wait_for(rf"{BAD}.*RecursionError: in {name}.*again")
            source.put(run_document("later", start=30))
            eventually(lambda: "later" in target.documents())
            patched.undo()
            eventually(lambda: target.documents() == source.documents())


def test_a_run_that_cannot_be_handled_is_reported_as_failing(
    source: LocalServer, target: LocalServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a sync that does not follow, with its name, the exception and where it was raised."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(20)))
    bad = failing("_parse", engine._parse, lambda text, run_id: run_id == BAD)
    monkeypatch.setattr(engine, "_parse", bad)
    found = sync_once(source.url, target.url, checkpoint)
    ((run_id, reason),) = found.failing
    assert (run_id, found.complete, found.counts.sent, found.backlog) == (BAD, False, 19, 1)
    assert re.search(r"internal error at test_service.py:\d+: RecursionError: in _parse", reason)


def test_an_exception_of_one_page_is_retried(
    source: LocalServer, target: LocalServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is raised by reading or by storing it."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(450)))
    log = Log()
    for place, name in ((client, "read_page"), (ListCrawler, "_track")):
        left = [1, 1, 1, 1]
        bad = failing(name, getattr(place, name), lambda *_, left=left: bool(left and left.pop()))
        monkeypatch.setattr(place, name, bad)
    with following(source.url, target.url, checkpoint, log=log.append):
        eventually(lambda: target.documents() == source.documents())
    assert any("a page of the list cannot be read: a page of the list: internal error" in line for line in log)


def test_a_list_item_that_is_no_object_hides_no_other(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """It is counted and logged as unusable."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(3)))
    with platform(source.url) as mock:
        real = mock.answer

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            status, body = real(path, headers)
            return status, body.replace(b'"data":[', b'"data":[null,7,"x",["y"],') if "?" in path else body

        mock.answer = answer  # type: ignore[method-assign]
        found = sync_once(mock.url, target.url, checkpoint)
    assert (found.counts.sent, found.complete) == (3, False)
    assert found.counts.unusable == 4 * found.counts.pages


# Errors that end the engine.


def _raises(error: BaseException, times: int) -> Iterator[BaseException]:
    yield from [error] * times


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (Checkpoint, "commit", StoreFull("the disk is full", where="state")),
        (Checkpoint, "due_runs", OSError("I/O error")),
        (report.SyncMonitor, "update", MemoryError()),
        (queues.SendQueue, "_settle", ZeroDivisionError()),
        (exporter.OtlpExporter, "report", KeyError("defect")),
        (service.SyncEngine, "__init__", ConfigError(where="TLS files ca.pem", expected="readable PEM files")),
    ],
    ids=["disk full", "I/O error", "memory", "settle", "exporter", "config"],
)
def test_a_sync_that_follows_begins_again_after_any_error(
    source: LocalServer,
    target: LocalServer,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    error: Exception,
) -> None:
    """Where the state file says, as after a kill, and says what it was; its counts go on."""
    source.put(run_document("before"))
    log = Log()
    with following(source.url, target.url, checkpoint, log=log.append) as follower:
        eventually(lambda: "before" in target.documents())
        eventually(lambda: follower.latest.counts.sent == 1)
        left = list(_raises(error, 5))
        real = getattr(place, name)

        def function(*args: Any, **options: Any) -> Any:
            if left:
                raise left.pop()
            return real(*args, **options)

        monkeypatch.setattr(place, name, function)
        if place is service.SyncEngine:  # which is made when another one has failed
            monkeypatch.setattr(Checkpoint, "commit", lambda self: (_ for _ in ()).throw(StoreFull("full")))
            log.wait_for("full")
            monkeypatch.undo()
            monkeypatch.setattr(service, "_MAX_DELAY", 0.02)
            monkeypatch.setattr(place, name, function)
        source.put(run_document("after", start=1))
        eventually(lambda: not left)
        eventually(lambda: follower.latest.counts.sent >= 2)
        assert target.documents() == source.documents()
    assert any("beginning again in" in line for line in log)


def test_a_stop_ends_a_sync_that_cannot_begin_again(
    source: LocalServer, target: LocalServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the report of what it did before."""
    monkeypatch.setattr(service, "_MAX_DELAY", 60.0)
    source.put(run_document("before"))
    log = Log()
    with following(source.url, target.url, checkpoint, log=log.append) as follower:
        eventually(lambda: follower.latest.counts.sent == 1)
        monkeypatch.setattr(Checkpoint, "commit", lambda self: (_ for _ in ()).throw(StoreFull("full")))
        log.wait_for("full; beginning again in 2 s")


def test_a_key_that_is_refused_for_a_while_does_not_end_a_sync_that_follows(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """It is read again with each request, so it may be replaced at any time."""
    source.put(run_document("before"))
    log = Log()
    with platform(source.url) as mock, following(mock.url, target.url, checkpoint, log=log.append):
        eventually(lambda: "before" in target.documents())
        mock.keys = {"another"}
        source.put(run_document("after", start=1))
        log.wait_for(r"no such key.*trying again")
        mock.keys = set()
        eventually(lambda: target.documents() == source.documents())


def test_a_wrong_start_ends_a_sync_that_follows_at_once(
    source: LocalServer, target: LocalServer, checkpoint: Path, tmp_path: Path
) -> None:
    """Before the platform has ever worked: its key, its address, and the files for the receiver."""
    args = ("--follow", "--endpoint", target.url, "--state-file", checkpoint)
    with platform(source.url, keys={"another"}) as mock:
        runspan("sync", mock.url, *args, code=7)
    elsewhere = ("--follow", "--endpoint", target.url, "--state-file", tmp_path / "elsewhere")
    runspan("sync", f"{source.url}/elsewhere", *elsewhere, code=9)
    missing = str(tmp_path / "missing.pem")
    secure = ("--follow", "--endpoint", "https://127.0.0.1:9", "--state-file", tmp_path / "secure")
    result = runspan("sync", source.url, *secure, code=2, OTEL_EXPORTER_OTLP_CERTIFICATE=missing)
    assert "TLS files" in result.stderr


def test_a_forbidden_run_costs_only_itself(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """It is reported as failing."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(20)))
    with platform(source.url) as mock:
        real = mock.answer

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            return (403, failure("FORBIDDEN", "not yours")) if path.endswith(BAD) else real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        found = sync_once(mock.url, target.url, checkpoint)
    assert ([run_id for run_id, _ in found.failing], found.counts.sent) == ([BAD], 19)
