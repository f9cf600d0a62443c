"""A watch of a folder in which an engine writes, appends, replaces and removes files, killed and on a full disk."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from zlib import crc32

import httpx
import pytest

from runspan import Run
from runspan.platform_api.client import run_path
from support.cli import WAIT, Running, running, server
from support.faults import FaultLine, mounted, rounds
from support.web import listed

pytestmark = pytest.mark.timeout(900)

SEED = 20261128
_ANSWER = b'{"success":true,"data":'
_PERMANENT = 50
"""Files and logs that the engine goes on changing."""


@dataclass
class Engine:
    """Writes runs into a folder in every way that engines do, until it is stopped."""

    folder: Path
    url: str
    written: dict[str, list[bytes]] = field(default_factory=dict)
    """Every document of each run, in the order in which they were written."""

    def __post_init__(self) -> None:
        self._random = Random(SEED)
        self._stop = threading.Event()
        self._removable: list[tuple[str, Path]] = []
        self._counts: dict[str, int] = {}
        (self.folder / "sub").mkdir(parents=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let it work in a thread while the block runs."""
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with httpx.Client(base_url=self.url, trust_env=False) as client:
                    while not self._stop.wait(self._random.uniform(0, 0.02)):
                        self._random.choice([self._add, self._append, self._replace, self._rewrite])()
                        self._remove(client)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(WAIT)
        assert not errors, errors

    def newest(self) -> dict[str, bytes]:
        return {run_id: texts[-1] for run_id, texts in self.written.items()}

    def _document(self, run_id: str, status: str = "completed") -> bytes:
        number = self._counts[run_id] = self._counts.get(run_id, 0) + 1
        steps = [
            {
                "id": f"s{step}",
                "status": "completed",
                "startedAt": f"2026-11-01T09:00:{step:02}Z",
                "completedAt": f"2026-11-01T09:00:{step + 1:02}Z",
                "output": "x" * self._random.randrange(200),
            }
            for step in range(min(number, 10))
        ]
        members = {"id": run_id, "status": status, "startedAt": "2026-11-01T09:00:00Z", "number": f"{number:04}"}
        text = Run.from_dict({**members, "steps": steps}).text
        self.written.setdefault(run_id, []).append(text)
        return text

    def _path(self, name: str) -> Path:
        return self.folder / ("sub" if crc32(name.encode()) % 2 else ".") / f"{name}.ndjson"

    def _add(self) -> None:
        """A new file: under another name first, or written in two pieces."""
        name = f"file_{len(self.written)}"
        text, path = self._document(name), self._path(name)
        if self._random.random() < 0.5:
            part = path.with_suffix(".part")
            part.write_bytes(text)
            part.rename(path)
        else:
            with path.open("wb") as file:
                middle = self._random.randrange(len(text))
                file.write(text[:middle])
                file.flush()
                time.sleep(self._random.uniform(0, 0.02))
                file.write(text[middle:])
        self._removable.append((name, path))

    def _append(self) -> None:
        """Another version of a run at the end of a log."""
        number = self._random.randrange(_PERMANENT)
        status = self._random.choice(["running", "running", "completed"])
        with self._path(f"log_{number % 5}").open("ab") as file:
            file.write(self._document(f"logged_{number}", status) + b"\n")

    def _replace(self) -> None:
        """Another file under the same name."""
        name = f"replaced_{self._random.randrange(_PERMANENT)}"
        part = self._path(name).with_suffix(".part")
        part.write_bytes(self._document(name))
        part.rename(self._path(name))

    def _rewrite(self) -> None:
        """The same file with as many bytes and the time of modification that it had."""
        name = f"rewritten_{self._random.randrange(_PERMANENT)}"
        path = self._path(name)
        if not path.exists():
            path.write_bytes(self._document(name))
            return
        before = path.stat()
        text = self.written[name][-1]
        number = self._counts[name] = self._counts[name] + 1
        text = text.replace(b'"number":"%04d"' % (number - 1), b'"number":"%04d"' % number)
        assert len(text) == before.st_size
        self.written[name].append(text)
        with path.open("r+b") as file:
            file.write(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _remove(self, client: httpx.Client) -> None:
        """Delete a file whose run has arrived."""
        if len(self._removable) > 20:
            name, path = self._removable.pop(self._random.randrange(20))
            if client.get(run_path(name)).status_code == 200:
                path.unlink()


def stored(client: httpx.Client, run_id: str) -> bytes:
    return client.get(run_path(run_id)).content.removeprefix(_ANSWER)[:-1]


def verify(fault: FaultLine, engine: Engine) -> None:
    """Count what is lost, wrong and there twice, once everything had the time to arrive."""
    deadline = time.monotonic() + 2 * WAIT
    with httpx.Client(base_url=engine.url, trust_env=False, timeout=WAIT) as client:
        missing = set(engine.written)
        while missing and time.monotonic() < deadline:
            missing = {run_id for run_id in missing if stored(client, run_id) != engine.written[run_id][-1]}
            time.sleep(0.1)
        ids = listed(client)
        for run_id in missing:
            found = stored(client, run_id)
            fault.wrong += found in engine.written[run_id] or (run_id in ids)
            fault.lost += run_id not in ids
    fault.twice += len(ids) - len(set(ids))
    fault.wrong += len(set(ids) - set(engine.written))
    fault.acknowledged += len(engine.written)


@contextmanager
def watch(folder: Path, url: str, *options: object) -> Iterator[Running]:
    args = ("export", "--watch", folder, "--recursive", "--endpoint", url, "--poll", "0.1s", *options)
    with running(*args) as child:
        child.wait_for("watching")
        yield child


def arrives(folder: Path, engine: Engine, name: str) -> float:
    """Write a run and return the seconds until the server has it."""
    began = time.monotonic()
    text = engine._document(name)
    part = folder / f"{name}.part"
    part.write_bytes(text)
    part.rename(folder / f"{name}.json")
    with httpx.Client(base_url=engine.url, trust_env=False, timeout=WAIT) as client:
        while stored(client, name) != text:
            assert time.monotonic() < began + 2 * WAIT, f"{name} does not arrive"
            time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("times", rounds(3, 100))
def test_kill_of_a_watch(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """At random moments, between start and delivery: the next one goes on, and in the end every run is there as it was
    written last, once."""
    random = Random(SEED)
    folder = tmp_path / "in"
    with server(tmp_path / "data") as (url, _):
        engine = Engine(folder, url)
        with engine.working():
            for _ in range(times):
                with watch(folder, url) as child:
                    time.sleep(random.uniform(0, 1.5))
                    child.process.kill()
                    assert child.process.wait(WAIT) == -signal.SIGKILL
                fault.rounds += 1
        with watch(folder, url) as child:
            fault.recovery = arrives(folder, engine, "recovery")
            verify(fault, engine)
            assert child.end() == 0
        assert not any("refused" in line or "rejected" in line for line in child.lines), child.lines
        with watch(folder, url) as child:
            time.sleep(1)
            assert child.end() == 0
        assert child.lines[-1].startswith("0 runs accepted"), child.lines


@pytest.fixture
def state_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB of its own."""
    with mounted(tmp_path / "state", 16) as folder:
        yield folder


@pytest.mark.parametrize("times", rounds(1, 10))
def test_full_disk_of_a_watch(fault: FaultLine, tmp_path: Path, state_disk: Path, times: int) -> None:
    """The disk of its state file: it says which file and what to do, sends nothing that it could not record, and goes
    on by itself once there is space."""
    folder, filler = tmp_path / "in", state_disk / "filler"
    with server(tmp_path / "data") as (url, _):
        engine = Engine(folder, url)
        with watch(folder, url, "--state-file", state_disk / "state.sqlite3") as child:
            for number in range(times):
                arrives(folder, engine, f"before_{number}")
                _fill(filler)
                for index in range(300):
                    (folder / f"{number}_{index}.json").write_bytes(engine._document(f"full_{number}_{index}"))
                child.wait_for(f"{state_disk / 'state.sqlite3'}: the disk is full.*free space.*trying again in")
                fault.refused += 1
                filler.unlink()
                fault.recovery = max(fault.recovery, arrives(folder, engine, f"after_{number}"))
                fault.rounds += 1
            verify(fault, engine)
            assert child.end() == 0
    assert not any("retention" in line for line in child.lines), child.lines


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        block = b"\0" * 4096
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


def test_what_the_engine_writes_is_json(tmp_path: Path) -> None:
    """The engine of these tests, alone: what it leaves in the folder are complete documents."""
    engine = Engine(tmp_path / "in", "http://127.0.0.1:9")
    for _ in range(200):
        engine._random.choice([engine._add, engine._append, engine._replace, engine._rewrite])()
    for path in (tmp_path / "in").rglob("*.ndjson"):
        for line in path.read_bytes().splitlines():
            json.loads(line)
