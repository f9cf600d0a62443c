"""A server under mixed load while clients do not read, send slowly, send in part, or take all connections."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from support.bad_clients import BEHAVIOURS, LARGE, bad_clients
from support.cli import Running, running
from support.faults import FaultLine, MixedLoad
from support.servers.process import free_ports

pytestmark = pytest.mark.timeout(900)

SEED = 20261128
QUICK = ("--header-time", "1s", "--slow-time", "1s", "--idle-time", "2s", "--max-unsent", 32)


def seconds(few: float, many: float) -> list[object]:
    """Return for how long bad clients work: shortly in every test run, longer in the campaign."""
    return [few, pytest.param(many, marks=pytest.mark.campaign)]


@contextmanager
def serving(data: Path, port: int, *options: object) -> Iterator[Running]:
    """A server at an address that the load knows, with a large run."""
    with running("serve", "--data", data, "--port", port, *options) as child:
        child.wait_for("is serving")
        assert httpx.post(f"http://127.0.0.1:{port}/api/v1/runs", json=LARGE, trust_env=False).status_code < 300
        yield child


def check_health(url: str, until: float, *, closed: int = 0) -> None:
    """The health check of a load balancer, which opens a connection each time, is answered soon.

    ``closed``: how many of a hundred may lose their connection to others before they have sent their request.
    """
    checks = failures = 0
    while time.monotonic() < until or checks == 0:
        checks += 1
        began = time.monotonic()
        try:
            assert httpx.get(f"{url}/healthz", timeout=10, trust_env=False).status_code == 200
        except (httpx.ReadError, httpx.RemoteProtocolError):
            failures += 1
        assert time.monotonic() - began < 4
        time.sleep(0.05)
    assert failures <= checks * closed // 100


def check_kept(client: httpx.Client) -> None:
    """A client is answered whose connection may have been closed for another one just as it sent its request."""
    try:
        assert client.get("/healthz").status_code == 200
    except (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError):
        assert client.get("/healthz").status_code == 200


def memory_of(child: Running) -> int:
    """Return the MiB of memory that a process uses."""
    status = Path(f"/proc/{child.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


@pytest.mark.parametrize("duration", seconds(4, 30))
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_clients(fault: FaultLine, tmp_path: Path, behaviour: str, duration: float) -> None:
    """The server closes their connections, answers health checks at once, and goes on to confirm writes."""
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with serving(tmp_path, port, *QUICK) as child:
        with load.running(), bad_clients(port, [BEHAVIOURS[behaviour]], 60) as clients:
            check_health(load.url, time.monotonic() + duration)
            fault.rounds = clients.closed
            fault.recovery = load.wait_for_write(time.monotonic(), 10)
            assert memory_of(child) < 500  # each of 60 clients has asked for 200 MB or more
        assert fault.rounds >= 60
        load.verify()
        assert "Traceback" not in "".join(child.lines)
        assert len(child.lines) < 50


@pytest.mark.parametrize("duration", seconds(3, 20))
def test_too_many_connections(fault: FaultLine, tmp_path: Path, duration: float) -> None:
    """Over the limits of connections, idle ones are closed, so that there is room for requests."""
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with serving(tmp_path, port, "--max-connections", 100, "--max-client-connections", 30) as child:
        with load.running(), bad_clients(port, list(BEHAVIOURS.values()), 30, sources=4) as clients:
            check_health(load.url, time.monotonic() + duration, closed=20)
            fault.rounds = clients.closed
            fault.recovery = load.wait_for_write(time.monotonic(), 10)
            assert _open_files(child.process.pid) < 180
        load.verify()
        assert len(child.lines) < 50


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.campaign)])
def test_stop_among_bad_clients(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """SIGTERM ends the server within 10 seconds, and no confirmed write is lost."""
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with load.running():
        for _ in range(times):
            with serving(tmp_path, port) as child, bad_clients(port, list(BEHAVIOURS.values()), 20):
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                began = time.monotonic()
                assert child.end() in (0, 1)  # 1: the end was forced
                assert time.monotonic() - began < 10
            fault.rounds += 1
    with serving(tmp_path, port):
        load.verify()


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.campaign)])
def test_no_file_descriptors(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """Without a file descriptor for new connections the server answers on others, idles, and logs little."""
    (port,) = free_ports(1)
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with serving(tmp_path, port) as child, load.running():
        pid = child.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for _ in range(times):
            with (
                httpx.Client(base_url=load.url, trust_env=False) as kept,
                bad_clients(port, [BEHAVIOURS["idle connections"]], 60),
                ExitStack() as stack,
            ):
                while _open_files(pid) < 60:
                    check_kept(kept)
                highest = max(int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir())
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
                stack.enter_context(bad_clients(port, [BEHAVIOURS["idle connections"]], 40))
                time.sleep(1)
                used, began = _processor_time(pid), time.monotonic()
                while time.monotonic() < began + 2:
                    check_kept(kept)
                    time.sleep(0.05)
                load.wait_for_write(time.monotonic(), 10)
                assert _processor_time(pid) - used < 1.8 * (time.monotonic() - began)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic(), 30))
                check_health(load.url, time.monotonic() + 1, closed=20)
            fault.rounds += 1
        assert any("cannot accept connections" in line for line in child.lines)
        assert len(child.lines) < 30 + 2 * times
    with serving(tmp_path, port):
        load.verify()


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _processor_time(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
