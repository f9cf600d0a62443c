"""A server under mixed load whose disk is full, because of others or of itself, or fails."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from random import Random

import httpx
import pytest

from support.faults import FaultLine, MixedLoad, fill, rounds, serving
from support.preload import Faults
from support.servers.process import free_ports

pytestmark = pytest.mark.timeout(900)

SEED = 20261128


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


@pytest.mark.parametrize("times", rounds(1, 10))
def test_disk_filled_by_the_store(fault: FaultLine, small_disk: Path, times: int) -> None:
    """Once writes are refused, retention makes room by itself, and they succeed again."""
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault, retention=10, padding=100_000)
    options = ("--retention", f"{load.retention / 86_400:.6f}", "--max-expire-share", 100)
    with serving(small_disk / "data", port, *options):
        with load.running():
            for _ in range(times):
                refused, deadline = fault.refused, time.monotonic() + 120
                while fault.refused == refused:
                    assert time.monotonic() < deadline, f"the disk was not full: {shutil.disk_usage(small_disk)}"
                    time.sleep(0.01)
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                fault.rounds += 1
        load.verify()


@pytest.mark.parametrize("times", rounds(2, 50))
def test_disk_fails(fault: FaultLine, tmp_path: Path, faults: Faults, times: int) -> None:
    """Some reads, writes and syncs of the store's files fail with EIO: requests are refused, and nothing is wrong."""
    random = Random(SEED)
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with load.running():
        for _ in range(-(-times // 10)):
            with serving(tmp_path / "data", port, env=faults.env) as child:
                for _ in range(min(10, times)):
                    load.wait_for_write(time.monotonic())
                    faults.set(failing=random.choice([0.005, 0.05, 0.5, 1]))
                    time.sleep(random.uniform(0.1, 0.5))
                    faults.set()
                    fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                    fault.rounds += 1
                child.process.kill()
    with serving(tmp_path / "data", port):
        load.verify()
    assert fault.refused
