"""SIGHUP, which the end of a login sends, stops every long command as SIGTERM does; under nohup it is ignored."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runspan import Run
from support.cli import WAIT, command, environment, running, server
from support.receivers import Receiver, http_receiver
from support.sync import eventually

DOCUMENT = Run.from_dict({"id": "a", "status": "completed", "startedAt": "2025-01-15T09:00:01Z"}).text


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with http_receiver() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    (made / "a.json").write_bytes(DOCUMENT)
    return made


def watching(folder: Path, receiver: Receiver) -> tuple[object, ...]:
    return ("export", "--watch", folder, "--endpoint", receiver.url, "--poll", "0.1s")


def test_serve(tmp_path: Path) -> None:
    """It answers what was asked, closes the store, and says so."""
    with server(tmp_path) as (_, child):
        assert child.end(signal.SIGHUP) == 0
    assert "everything acknowledged is on disk" in child.lines[-1]


def test_watch(folder: Path, receiver: Receiver) -> None:
    """It prints what was sent. The file is finished a moment after that."""
    with running(*watching(folder, receiver)) as child:
        eventually(lambda: bool(receiver.accepted))
        assert child.end(signal.SIGHUP) == 0
    assert re.match("1 runs accepted, (1 files finished$|0 files finished; 1 files are left)", child.lines[-1])


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of a port that is taken and refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(("follow", "code"), [((), 130), (("--follow",), 0)], ids=["once", "follow"])
def test_sync(tmp_path: Path, receiver: Receiver, nowhere: str, follow: tuple[str, ...], code: int) -> None:
    """It prints its report, though the platform does not answer."""
    args = ("sync", nowhere, "--endpoint", receiver.url, "--state-file", tmp_path / "state", *follow)
    with running(*args) as child:
        eventually((tmp_path / "state").exists)
        child.wait_for("trying again")
        assert child.end(signal.SIGHUP) == code
    assert any("runs sent" in line for line in child.lines), child.lines


def test_archive(tmp_path: Path, nowhere: str) -> None:
    """It ends as after Ctrl-C, and the next one resumes it."""
    with running("archive", "--before", "1h", "--to", tmp_path, "--backend", nowhere) as child:
        child.wait_for("retrying in")
        assert child.end(signal.SIGHUP) == 130
    assert child.lines[-1] == "runspan: interrupted\n"


def test_under_nohup(folder: Path, receiver: Receiver) -> None:
    """The command goes on after the end of the login, and SIGTERM still ends it."""
    args = ["nohup", *command(*watching(folder, receiver))]
    with subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as child:
        eventually(lambda: bool(receiver.accepted))
        child.send_signal(signal.SIGHUP)
        (folder / "b.json").write_bytes(DOCUMENT.replace(b'"a"', b'"b"'))
        eventually(lambda: len(receiver.accepted) == 2)
        assert child.poll() is None
        child.terminate()
        _, shown = child.communicate(timeout=WAIT)
    assert child.returncode == 0
    assert b"\n2 runs accepted, " in shown  # the second file may be left for the next start


def test_a_terminal_that_is_gone(folder: Path, receiver: Receiver) -> None:
    """Nothing can be printed any more: the command ends all the same, as it does elsewhere."""
    pid, ours = pty.fork()
    if not pid:
        os.execve(sys.executable, command(*watching(folder, receiver)), environment())
    eventually(lambda: bool(receiver.accepted))
    os.close(ours)
    deadline = time.monotonic() + WAIT
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
