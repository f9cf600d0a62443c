"""Faults of a server under load: the load, what it was promised, and one line a fault at the end of the test run."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import pytest

from runspan import Run, encode
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.platform_api.client import run_path
from runspan.testing import generate
from support.cli import Running, running
from support.web import JSON, PROTOBUF, listed

_ANSWER = b'{"success":true,"data":'
_TIMEOUT = 10


@dataclass
class FaultLine:
    """What a fault did: a line of the table that a campaign prints."""

    fault: str
    rounds: int = 0
    acknowledged: int = 0
    """Writes that the server confirmed."""
    lost: int = 0
    """Confirmed runs that it does not have."""
    wrong: int = 0
    """Responses with a document that nobody sent, or one older than what was confirmed."""
    twice: int = 0
    """Runs that a list has twice."""
    refused: int = 0
    """Requests that were refused with a reason."""
    recovery: float = 0.0
    """Seconds from the end of the fault to the first confirmed write, the longest of all rounds."""


def rounds(few: int, many: int) -> list[object]:
    """Return the numbers of rounds: a few in every test run, many in the campaign."""
    return [few, pytest.param(many, marks=pytest.mark.campaign)]


@contextmanager
def serving(data: Path, port: int, *options: object, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A server at an address that the load knows."""
    with running("serve", "--data", data, "--port", port, *options, env=env) as child:
        child.wait_for("is serving")
        yield child


_PASSED: Final = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know whether the test passed: one that was skipped or has failed has no line to check."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture
def fault(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[FaultLine]:
    """The line of the test's fault: nothing may be lost, wrong or there twice."""
    line = FaultLine(request.node.name.removeprefix("test_").replace("_", " "))
    yield line
    if not request.node.stash.get(_PASSED, False):
        return
    record_property("fault", asdict(line))
    assert line.acknowledged > 0
    assert (line.lost, line.wrong, line.twice) == (0, 0, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    with mounted(tmp_path / "disk", 24) as folder:
        yield folder


@contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Create a folder on a file system in memory; the test is skipped where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs permission to mount a file system in memory")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Take all free space of a disk for a file."""
    with path.open("wb", buffering=0) as file:
        block = b"\0" * 65536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each fault of the test run, whatever process measured it."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        value
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, value in report.user_properties
        if name == "fault"
    ]
    if not lines:
        return
    terminalreporter.section("faults")
    columns = list(lines[0])
    rows = [
        columns,
        *([f"{line[name]:.1f}" if name == "recovery" else str(line[name]) for name in columns] for line in lines),
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    for row in rows:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        terminalreporter.write_line("  ".join(cells))


@dataclass
class MixedLoad:
    """Four threads that write documents and spans, correct runs, and read and list what was confirmed.

    The server may come and go: a request that it does not answer is repeated later, as every client of runspan does.
    Each run has one writer, so that its confirmed revision is known.
    """

    url: str
    seed: int
    line: FaultLine
    confirmed: dict[str, bytes] = field(default_factory=dict)
    """The newest confirmed document of each run."""
    sent: dict[str, list[bytes]] = field(default_factory=dict)
    """Every document that was sent of each run, confirmed or not, in order."""
    retention: float | None = None
    """Seconds after which a run may be deleted. Then each run ends when it is sent."""
    purged: bool = False
    """Whether runs are archived and deleted meanwhile."""
    padding: int = 0
    """Bytes of each document that cannot be compressed, about."""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._writes = 0
        self._began: dict[str, float] = {}
        """When each run was sent first."""
        self._last_write = 0.0

    @contextmanager
    def running(self) -> Iterator[MixedLoad]:
        """Run the threads until the block ends."""
        works = [self._post, self._correct, self._export, self._read]
        threads = [threading.Thread(target=work, args=(Random(self.seed + at),)) for at, work in enumerate(works)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(2 * _TIMEOUT)
            assert not any(thread.is_alive() for thread in threads)

    def wait_for_write(self, since: float, seconds: float = 60) -> float:
        """Wait until a write that began after ``since`` was confirmed; return the seconds until then."""
        while self._last_write < since:
            assert time.monotonic() < since + seconds, "no write was confirmed"
            time.sleep(0.005)
        return self._last_write - since

    def verify(self, archived: Mapping[str, bytes] | None = None) -> None:
        """Count what is lost, wrong and there twice on a server that is up. archived: documents that may be purged."""
        kept = {run_id for run_id, text in (archived or {}).items() if text in self._valid(run_id)}
        with self._client() as client:
            ids = listed(client)
            self.line.twice += len(ids) - len(set(ids))
            lost = [run_id for run_id in self.confirmed.keys() - kept - set(ids) if not self._is_expired(run_id)]
            self.line.lost += len(lost)
            self.problems += [f"{run_id}: lost {self.confirmed[run_id][:300]!r}" for run_id in lost]
            for run_id in self.sent:
                response = client.get(run_path(run_id))
                if response.status_code == 404:
                    self.line.lost += run_id in self.confirmed and run_id in ids and not self._is_expired(run_id)
                else:
                    self._check(run_id, response, self._confirmed_index(run_id))
        self.line.acknowledged += self._writes
        assert self.problems == []

    def _is_expired(self, run_id: str) -> bool:
        """Whether a run may be past retention by now."""
        return self.retention is not None and self._began[run_id] < time.time() - self.retention

    def _valid(self, run_id: str) -> list[bytes]:
        """Return the documents that a run may have: the newest confirmed one, and what was sent after it."""
        return self.sent.get(run_id, [])[self._confirmed_index(run_id) :]

    def _confirmed_index(self, run_id: str) -> int:
        """Return which of the documents that were sent of a run is the newest confirmed one; 0 without one."""
        confirmed = self.confirmed.get(run_id)
        return 0 if confirmed is None else self.sent[run_id].index(confirmed)

    def _check(self, run_id: str, response: httpx.Response, oldest: int = 0) -> None:
        """Count a response as wrong unless it has a document as it was sent, at least the ``oldest`` one."""
        if response.status_code == 404 and (self.purged or self._is_expired(run_id)):
            return
        text = response.content.removeprefix(_ANSWER)[:-1]
        if response.status_code != 200 or text not in self.sent[run_id][oldest:]:
            self.line.wrong += 1
            self.problems.append(f"{run_id}: {response.status_code} {response.content[:200]!r}")

    def _post(self, random: Random) -> None:
        """Send documents, each a new run."""
        self._write(random, lambda client, run: client.post("/api/v1/runs", content=run.text, headers=JSON))

    def _export(self, random: Random) -> None:
        """Send the spans of new runs."""

        def send(client: httpx.Client, run: Run) -> httpx.Response:
            body = request_bytes(Resource(), [scoped_bytes(span) for span in encode(run)])
            return client.post("/v1/traces", content=body, headers=PROTOBUF)

        self._write(random, send)

    def _correct(self, random: Random) -> None:
        """Send each run twice: while it is running, and when it has ended."""

        def send(client: httpx.Client, run: Run) -> httpx.Response:
            return client.post("/api/v1/runs", content=run.text, headers=JSON)

        self._write(random, send, with_running=True)

    def _write(
        self, random: Random, send: Callable[[httpx.Client, Run], httpx.Response], *, with_running: bool = False
    ) -> None:
        with self._client() as client:
            for text in generate(1_000_000, seed=random.getrandbits(40)):
                run = Run.from_json(text)
                first = run.to_dict() | {"status": "running", "completedAt": None, "durationMs": None, "output": None}
                for revision in ([Run.from_dict(first)] if with_running else []) + [run]:
                    while not self._confirmed(client, send, self._next_document(revision, random)):
                        if self._stop.wait(random.uniform(0.01, 0.05)):
                            return
                if self._stop.is_set():
                    return

    def _next_document(self, run: Run, random: Random) -> Run:
        """Return the document to send, and record that it is sent."""
        members: dict[str, Any] = {}
        if self.padding:
            members["input"] = random.randbytes(self.padding // 2).hex()
        if self.retention is not None and run.finished:
            members["completedAt"] = datetime.now(UTC).isoformat()
        run = Run.from_dict(run.to_dict() | members) if members else run
        self._began.setdefault(run.id, time.time())
        texts = self.sent.setdefault(run.id, [])
        if run.text not in texts:
            texts.append(run.text)
        return run

    def _confirmed(self, client: httpx.Client, send: Callable[[httpx.Client, Run], httpx.Response], run: Run) -> bool:
        began = time.monotonic()
        try:
            response = send(client, run)
        except httpx.HTTPError:
            return False
        if not response.is_success:
            self._refused(response)
            return False
        with self._lock:
            self.confirmed[run.id] = run.text
            self._writes += 1
            self._last_write = max(self._last_write, began)
        return True

    def _refused(self, response: httpx.Response) -> None:
        """Count a refusal, which must have a reason: ``internal error`` is none."""
        self.line.refused += 1
        if response.status_code not in (429, 503, 507) or b"INTERNAL_ERROR" in response.content:
            self.problems.append(f"{response.status_code} {response.content[:300]!r}")

    def _read(self, random: Random) -> None:
        """Read confirmed runs and the newest page of the list."""
        with self._client() as client:
            while not self._stop.wait(0.002):
                try:
                    self._read_once(client, random)
                except httpx.HTTPError:
                    self._stop.wait(0.02)

    def _read_once(self, client: httpx.Client, random: Random) -> None:
        with self._lock:
            known = list(self.confirmed)[-1000:]
        if not known:
            return
        run_id = random.choice(known)
        with self._lock:
            oldest = self._confirmed_index(run_id)
        response = client.get(run_path(run_id))
        if response.status_code >= 500:
            self._refused(response)
        else:
            self._check(run_id, response, oldest)
        page: Any = client.get("/api/v1/runs", params={"limit": "50"})
        if page.status_code >= 500:
            self._refused(page)
            return
        ids = [item["id"] for item in page.json()["data"]]
        self.line.twice += len(ids) - len(set(ids))

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_TIMEOUT, trust_env=False)
