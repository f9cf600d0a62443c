"""A server under mixed load that is killed, stopped or frozen, that shares its store, or loses its directory."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
import pytest

from runspan.backends.sqlite import SqliteStore
from support.archives import held
from support.cli import running
from support.faults import FaultLine, MixedLoad, rounds, serving
from support.servers.process import free_ports

pytestmark = pytest.mark.timeout(900)

SEED = 20261128
RETENTION = 60
"""Seconds."""


@pytest.mark.parametrize("times", rounds(2, 100))
def test_kill(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """After each SIGKILL and restart every confirmed run is there, in an archive, or past retention."""
    _restarts(fault, tmp_path, times, signal.SIGKILL)


@pytest.mark.parametrize("times", rounds(1, 20))
def test_stop(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """SIGTERM ends the server within its grace, whatever clients do, and no confirmed run is lost."""
    _restarts(fault, tmp_path, times, signal.SIGTERM)


def _restarts(fault: FaultLine, directory: Path, times: int, number: int) -> None:
    random = Random(SEED)
    (port,) = free_ports(1)
    data, archives = directory / "data", directory / "archives"
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault, retention=RETENTION, purged=True)
    options = ("--retention", f"{RETENTION / 86_400:.6f}", "--max-expire-share", 100)
    SqliteStore(data).close()
    with load.running(), _purging(data, archives):
        for _ in range(times):
            with serving(data, port, *options) as child:
                up = time.monotonic()
                fault.recovery = max(fault.recovery, load.wait_for_write(up))
                time.sleep(random.uniform(0, 0.5))
                began = time.monotonic()
                child.end(number)
                assert time.monotonic() - began < 15
            fault.rounds += 1
    finished = [path for path in sorted(archives.iterdir()) if (path / "manifest.json").exists()]
    archived = {run_id: text for path in finished for run_id, text in held(path).items()}
    with serving(data, port, *options):
        load.verify(archived)
    assert archived


@contextmanager
def _purging(data: Path, archives: Path) -> Iterator[None]:
    """Archive and purge again and again while the block runs. Some of these commands are killed, too."""
    random = Random(SEED)
    stop = threading.Event()
    failures: list[str] = []

    def purge() -> None:
        while not stop.wait(0.2):
            with running("archive", "--before", "1m", "--to", archives, "--purge", "--data", data) as child:
                if random.random() < 0.3 and not stop.wait(random.uniform(0.5, 2)):
                    child.process.kill()
                elif child.process.wait(120) not in (0, 1):  # 1: a run has not ended
                    child.read_to_the_end()
                    failures.append("".join(child.lines))

    thread = threading.Thread(target=purge)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(120)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("times", rounds(1, 20))
def test_freeze(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """A server that the system stops for a while goes on where it was."""
    random = Random(SEED)
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with serving(tmp_path, port) as child:
        with load.running():
            for _ in range(times):
                load.wait_for_write(time.monotonic())
                time.sleep(random.uniform(0, 0.3))
                child.process.send_signal(signal.SIGSTOP)
                time.sleep(random.uniform(0.2, 1.0))
                child.process.send_signal(signal.SIGCONT)
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                fault.rounds += 1
        load.verify()


@pytest.mark.parametrize("times", rounds(1, 20))
def test_two_servers(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """Two servers on one directory share the store, and one goes on while the other is killed."""
    random = Random(SEED)
    ports = free_ports(2)
    loads = [MixedLoad(f"http://127.0.0.1:{port}", SEED + 10 * at, fault) for at, port in enumerate(ports)]
    with serving(tmp_path, ports[0]) as first:
        with loads[0].running(), loads[1].running():
            for _ in range(times):
                with serving(tmp_path, ports[1]) as second:
                    for load in loads:
                        fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                    time.sleep(random.uniform(0, 0.5))
                    second.end(random.choice([signal.SIGKILL, signal.SIGTERM]))
                loads[0].wait_for_write(time.monotonic())
                fault.rounds += 1
        for load in loads:
            load.url = loads[0].url
            load.verify()
        first.end()


@pytest.mark.parametrize("replaced", [False, True])
def test_directory_gone(fault: FaultLine, tmp_path: Path, replaced: bool) -> None:
    """Nothing is confirmed once the store's file was deleted, or replaced by another one."""
    (port,) = free_ports(1)
    data = tmp_path / "data"
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with serving(data, port) as child:
        with load.running():
            load.wait_for_write(time.monotonic())
            os.rename(data, tmp_path / "moved")
            if replaced:
                shutil.copytree(tmp_path / "moved", data)
            gone = time.monotonic()
            deadline = gone + 30
            while load.line.refused == 0:
                assert time.monotonic() < deadline, "writes to a deleted file were confirmed"
                time.sleep(0.01)
            assert httpx.get(f"{load.url}/readyz", trust_env=False).status_code == 503
            with pytest.raises(AssertionError, match="no write was confirmed"):
                load.wait_for_write(time.monotonic(), 1)
        child.end()
    shutil.rmtree(data, ignore_errors=True)
    os.rename(tmp_path / "moved", data)
    with serving(data, port):
        load.verify()
    fault.rounds = 1


@pytest.mark.parametrize("times", rounds(1, 10))
def test_directory_restored(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """A directory that was moved away and comes back is written to again, without a restart."""
    (port,) = free_ports(1)
    data, moved = tmp_path / "data", tmp_path / "moved"
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with serving(data, port):
        with load.running():
            for _ in range(times):
                load.wait_for_write(time.monotonic())
                os.rename(data, moved)
                refused, deadline = fault.refused, time.monotonic() + 30
                while fault.refused == refused:
                    assert time.monotonic() < deadline, "writes to a moved file were confirmed"
                    time.sleep(0.01)
                os.rename(moved, data)
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                fault.rounds += 1
        load.verify()
