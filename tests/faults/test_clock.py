"""A server under mixed load whose wall clock jumps."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from support.faults import FaultLine, MixedLoad, rounds, serving
from support.preload import Faults
from support.servers.process import free_ports

pytestmark = pytest.mark.timeout(600)

SEED = 20261128
DAY = 86_400


@pytest.mark.parametrize("times", rounds(2, 20))
def test_clock_jumps(fault: FaultLine, tmp_path: Path, faults: Faults, times: int) -> None:
    """Ahead and back, also over a restart, after which retention runs: no run is deleted or rejected."""
    random = Random(SEED)
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault, retention=30 * DAY)
    options = ("--retention", 30)
    with load.running():
        with serving(tmp_path / "data", port):
            while len(load.confirmed) < 50:
                time.sleep(0.01)
        for number in range(times):
            with serving(tmp_path / "data", port, *options, env=faults.env) as child:
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                faults.set(clock=(40 if number % 2 == 0 else random.choice([-40, -1, 20, 400, 0])) * DAY)
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                time.sleep(random.uniform(0, 0.3))
                child.process.kill()
            fault.rounds += 1
    faults.set()
    with serving(tmp_path / "data", port, *options):
        load.verify()
    assert fault.refused == 0
