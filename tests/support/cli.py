"""What the tests of the command line share: the command in this process, as one of its own, and a server of it."""

from __future__ import annotations

import os
import queue
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import click
from click.testing import CliRunner, Result

from runspan import Run
from runspan.cli import main
from runspan.testing import generate

SAMPLES = Path(__file__).parents[2] / "examples" / "runs"
WAIT = 60


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would set an option, and with ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNSPAN_", "OTEL_"))}
    return kept | more


def runspan(*args: object, stdin: bytes | None = None, code: int = 0, **env: str) -> Result:
    """The command in this process; it must end with this exit code, and without a stack trace."""
    unset = dict.fromkeys(name for name in os.environ if name.startswith(("RUNSPAN_", "OTEL_")))
    result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, env=unset | env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def subcommands(group: click.Command) -> dict[str, click.Command]:
    """The commands of a group by name; none for a command that is no group. They are imported for it."""
    if not isinstance(group, click.Group):
        return {}
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "runspan", *map(str, args)]


def process(
    *args: object, code: int = 0, cwd: Path | None = None, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own, which must end with this exit code."""
    done = subprocess.run(
        command(*args), input=stdin, capture_output=True, check=False, cwd=cwd, env=environment(**(env or {}))
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


class Running:
    """A command that runs. url: the server's, as it was printed."""

    def __init__(self, args: tuple[object, ...], env: Mapping[str, str], cwd: Path | None, prints_on: str) -> None:
        self.process = subprocess.Popen(
            command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment(**env)
        )
        self.lines: list[str] = []
        self._arriving: queue.Queue[str] = queue.Queue()
        self._stream = self.process.stdout if prints_on == "stdout" else self.process.stderr
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line from now on in which the pattern is found."""
        while line := self._arriving.get(timeout=WAIT):
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}: {self.lines}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit code after this signal."""
        self.process.send_signal(number)
        code = self.process.wait(WAIT)
        self.read_to_the_end()
        return code

    def read_to_the_end(self) -> None:
        """Returns once all that an ended process has printed is in ``lines``."""
        self._reader.join(WAIT)

    def _read(self) -> None:
        assert self._stream is not None
        for line in self._stream:
            self.lines.append(line)
            self._arriving.put(line)
        self._arriving.put("")


@contextmanager
def running(
    *args: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, prints_on: str = "stderr"
) -> Iterator[Running]:
    """A command that runs until the block ends, at the latest. prints_on: the stream that is read."""
    child = Running(args, env or {}, cwd, prints_on)
    with child.process:
        try:
            yield child
        finally:
            if child.process.poll() is None:
                child.process.kill()
            child.read_to_the_end()


@contextmanager
def server(data: Path, *args: object, **env: str) -> Iterator[tuple[str, Running]]:
    """A real ``runspan serve`` on a free port: its URL, and the process."""
    with running("serve", "--data", data, "--port", 0, *args, env=env) as child:
        yield child.wait_for(r"is serving \S+ at (http://\S+)")[1], child


def until_stored(data: Path, count: int, exporting: Running) -> None:
    """Returns once so many runs are in the store's file, seen from outside of the process that writes it."""
    with closing(sqlite3.connect(f"file:{data}/runspan.sqlite3?mode=ro", uri=True, timeout=30)) as connection:
        while connection.execute("SELECT count(*) FROM runs").fetchone()[0] < count:
            assert exporting.process.poll() is None, "the export ended before so many runs were stored"
            time.sleep(0.001)


def generated(count: int, *, seed: int = 5, unfinished: bool = False) -> dict[str, bytes]:
    """Canonical texts of generated runs by id."""
    runs = (Run.from_json(text) for text in generate(count, seed=seed, unfinished=unfinished))
    return {run.id: run.text for run in runs}


def write_ndjson(path: Path, texts: Mapping[str, bytes]) -> Path:
    path.write_bytes(b"".join(text + b"\n" for text in texts.values()))
    return path


def data_directory(parent: Path, texts: Mapping[str, bytes]) -> Path:
    """A data directory that a real server has filled with these runs, which are in ``runs.ndjson`` beside it."""
    path, folder = write_ndjson(parent / "runs.ndjson", texts), parent / "data"
    with server(folder) as (url, child):
        process("export", path, "--endpoint", url)
        child.end()
    return folder


def execute(file: Path, *statements: str) -> None:
    """Change a database behind the back of whatever uses it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
