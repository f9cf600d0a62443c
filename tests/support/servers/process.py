"""Programs started by tests and the benchmark, in a directory of their own, and ended by their own process id."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 3.0


class Failed(Exception):
    """A server did not start; the text has the end of its log."""


class Program:
    """One server process. Its output goes to ``log``. env: its environment, by default that of this process."""

    def __init__(self, command: Sequence[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = directory / "server.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Returns when the server is ready; Failed when it ends first or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Failed(self.log.read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, such as SIGSTOP."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: the program ends where it stands."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: the system accepts connections for it, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: the program goes on where it was."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL when it does not end in time. Calling it twice is allowed."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def answers(url: str) -> bool:
    """Whether a GET there is a success."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on just now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports
