"""PostgreSQL for tests: a server in a directory of its own, whose user logs in with a password.

Its programs refuse root, so for root they run as ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from support.servers.finding import USED, container_engine, missing
from support.servers.process import START_SECONDS, Failed, free_ports

IMAGE: Final = "postgres:15-alpine"
PASSWORD: Final = "not/to:be@seen"
USER: Final = "runspan"
_VARIABLE: Final = "RUNSPAN_TEST_POSTGRESQL"
_SETTINGS: Final = {
    "fsync": "off",  # no test cuts the power
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "unix_socket_directories": "",
}


class Postgres:
    """A server that answers. how: where it comes from."""

    def __init__(self, how: str, base: str) -> None:
        self.how = how
        self.base = base
        """The URL of the database to connect to for making others."""

    def database(self) -> str:
        """The URL of a new database, with the password."""
        import psycopg

        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.base, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return urlsplit(self.base)._replace(path=f"/{name}").geturl()

    def stop(self) -> None:
        """Ends what the test run started."""


class OwnPostgres(Postgres):
    """A server of the test's own. It may be stopped, killed, frozen, and started again on the same port."""

    def __init__(self, programs: Path, port: int = 0) -> None:
        """port: 0 for a free one."""
        self._programs = programs
        self._port = port or free_ports(1)[0]
        super().__init__(f"the program {programs / 'postgres'}", _url("127.0.0.1", self._port))
        self._directory = Path(tempfile.mkdtemp(prefix="runspan-postgres-"))  # pytest's are closed to other users
        self._data = self._directory / "data"
        self._user = None
        if os.getuid() == 0:
            self._user = "nobody"
            os.chown(self._directory, pwd.getpwnam("nobody").pw_uid, -1)
        password = self._directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        try:
            self._run(
                "initdb", f"--pgdata={self._data}", f"--username={USER}", f"--pwfile={password}", "--no-sync",
                "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale",
            )  # fmt: skip
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Starts it, or starts it again; returns when it answers."""
        settings = " ".join(f"-c {name}='{value}'" for name, value in _SETTINGS.items())
        log = self._directory / "log"
        self._run(
            "pg_ctl", "start", f"--pgdata={self._data}", f"--log={log}", f"--timeout={START_SECONDS:.0f}", "--wait",
            f"--options=-p {self._port} {settings}",
        )  # fmt: skip

    def halt(self, mode: str = "fast") -> None:
        """Ends it, and keeps its data. mode: ``fast``, or ``immediate`` for a crash."""
        self._run("pg_ctl", "stop", f"--pgdata={self._data}", f"--mode={mode}", "--wait")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP for all of its processes: the system accepts connections for it, and nothing answers."""
        main = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(main, signal.SIGSTOP)  # the first: it starts the others
        processes = [main, *_children(main)]
        try:
            for process in processes[1:]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            yield
        finally:
            for process in reversed(processes):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.halt("immediate")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *args],
            user=self._user,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # no pipe: the server would hold it open
            stderr=subprocess.DEVNULL,
            timeout=2 * START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            log = self._directory / "log"
            raise Failed(f"{program}: {log.read_text(errors='replace')[-2000:] if log.exists() else done.returncode}")


class ContainerPostgres(Postgres):
    """A server in a container."""

    def __init__(self, image: str) -> None:
        engine, _ = container_engine()
        self._container: Any = engine.containers.run(
            image,
            environment={"POSTGRES_USER": USER, "POSTGRES_PASSWORD": PASSWORD},
            ports={"5432/tcp": ("127.0.0.1", None)},
            detach=True,
        )
        try:
            self._container.reload()
            port = int(self._container.ports["5432/tcp"][0]["HostPort"])
            super().__init__(f"a container of {image}", _url("127.0.0.1", port))
            deadline = time.monotonic() + START_SECONDS
            while not self._answers():
                if time.monotonic() > deadline:
                    raise Failed(self._container.logs(tail=20).decode(errors="replace"))
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._container.remove(force=True)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.base).close()
        except psycopg.OperationalError:
            return False
        return True


def _url(host: str, port: int) -> str:
    return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@{host}:{port}/postgres"


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


@cache
def find_programs() -> Path | None:
    """The folder of the programs: of those on PATH, else of Debian's newest version."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((path for path in folders if all((path / name).exists() for name in ("initdb", "pg_ctl"))), None)


def start_postgres(*, own: bool = False) -> Postgres:
    """A server; without one the test is skipped with the reason, or fails when ``RUNSPAN_REQUIRE`` names postgresql.

    ``RUNSPAN_TEST_POSTGRESQL`` is the URL of a database whose user may create others. own: It must be an
    ``OwnPostgres``.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError:
        missing("postgresql", "the package psycopg is not installed")
    url, programs = os.environ.get(_VARIABLE), find_programs()
    server: Postgres
    if url and not own:
        server = Postgres(f"PostgreSQL of {_VARIABLE}", url)
    elif programs is not None:
        server = OwnPostgres(programs)
    else:
        engine, reason = container_engine()
        if engine is None or own:
            reason = "the test stops the server" if own else f"no {_VARIABLE}, and no container engine: {reason}"
            missing("postgresql", f"no program postgres on PATH or in /usr/lib/postgresql; {reason}")
        engine.close()
        server = ContainerPostgres(IMAGE)
    USED.add(server.how)
    return server
