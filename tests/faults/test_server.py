"""A server under mixed load while it is killed, stopped, frozen, out of space, or loses its directory."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
import pytest

from support.cli import Running, running
from support.faults import FaultLine, MixedLoad, fill
from support.servers.process import free_ports

pytestmark = pytest.mark.timeout(600)

SEED = 20261128


def rounds(few: int, many: int) -> list[object]:
    """Return the numbers of rounds: a few in every test run, many in the campaign."""
    return [few, pytest.param(many, marks=pytest.mark.campaign)]


@contextmanager
def serving(data: Path, port: int, *options: object) -> Iterator[Running]:
    """A server at an address that the load knows."""
    with running("serve", "--data", data, "--port", port, *options) as child:
        child.wait_for("is serving")
        yield child


@pytest.mark.parametrize("times", rounds(2, 100))
def test_kill(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """After each SIGKILL and restart every confirmed run is there."""
    _restarts(fault, tmp_path, times, signal.SIGKILL)


@pytest.mark.parametrize("times", rounds(1, 20))
def test_stop(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """SIGTERM ends the server within its grace, whatever clients do, and no confirmed run is lost."""
    _restarts(fault, tmp_path, times, signal.SIGTERM)


def _restarts(fault: FaultLine, data: Path, times: int, number: int) -> None:
    random = Random(SEED)
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with load.running():
        for _ in range(times):
            with serving(data, port) as child:
                up = time.monotonic()
                fault.recovery = max(fault.recovery, load.wait_for_write(up))
                time.sleep(random.uniform(0, 0.5))
                began = time.monotonic()
                child.end(number)
                assert time.monotonic() - began < 15
            fault.rounds += 1
    with serving(data, port):
        load.verify()


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


@pytest.mark.parametrize("times", rounds(1, 10))
def test_disk_filled_by_others(fault: FaultLine, small_disk: Path, times: int) -> None:
    """While the disk is full, writes are refused with the reason and reads go on; then everything goes on."""
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    filler = small_disk / "filler"
    with serving(small_disk / "data", port):
        with load.running():
            for _ in range(times):
                load.wait_for_write(time.monotonic())
                fill(filler)
                _wait_until_refused(load, small_disk)
                filler.unlink()
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                fault.rounds += 1
        load.verify()


def _wait_until_refused(load: MixedLoad, disk: Path) -> None:
    """Wait for a refused write, and check what the server says of itself then."""
    deadline = time.monotonic() + 60
    response = httpx.get(f"{load.url}/readyz", trust_env=False)
    while load.line.refused == 0 or response.status_code == 200:
        assert time.monotonic() < deadline, f"writes were not refused; {shutil.disk_usage(disk)}, {response.text}"
        fill(disk / "filler")
        response = httpx.get(f"{load.url}/readyz", trust_env=False)
        time.sleep(0.05)


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
