"""Walk through a page of the documentation: ``python -m operate.walk PAGE DIR``, in network and mount namespaces alone.

Every line of the page's ``console`` blocks is typed into one shell, from top to bottom, and its ``python`` blocks run
between them, as a reader would do it who has a clone, the servers that the page names, and the files that it takes for
granted. The namespaces give the page its own loopback: the servers listen where the page says, under the names that it
uses. The exit status is 0 if every line did what it is there for.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from support.receivers import certificate
from support.servers.jaeger import BADGER, is_ready
from support.servers.jaeger import config as jaeger_config
from support.servers.postgres import OwnPostgres, find_programs
from support.servers.process import START_SECONDS, Program, answers
from support.servers.programs import ROOT, require_program
from support.servers.tempo import config as tempo_config

BLOCK: Final = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMES: Final = {
    "127.0.0.1": ("localhost", "tempo", "db.internal"),
    "127.0.0.2": ("jaeger",),
    "127.0.0.3": ("collector",),
    "127.0.0.4": ("workflows.example.com",),
}
"""Addresses of this namespace, and what the pages call them."""
UNABLE: Final = {
    r"^make (demo|test|campaign|stack)$": "runs in .ci/run, or needs a container engine",
    r"^docker ": "needs a container engine",
    r"\bpytest tests/": "takes minutes, and a Tempo with other settings",
    r"s3://": "needs an object store",
    r"^kafka-topics\.sh |-target=|//query-frontend:": "needs Kafka and an object store",
    r"//opensearch:": "needs an OpenSearch; tests/backends/jaeger/test_opensearch.py does it",
    r"^runspan erase ": "ends with 1 until --yes is added, which needs the server stopped",
    r":24318\b": "needs `make stack`, which needs a container engine",
}
"""Lines that are not typed, and why."""
MOVED: Final = ("/srv/backup", "/srv", "/etc/prometheus/rules")
"""Folders of the reader's machine, which are made below the clone instead."""
SERVICE: Final = re.compile(
    r"^(runspan serve|runspan (export|sync) .*(--watch|--follow)\b|otelcol|python examples/engine.*&$)"
)
"""Lines that go on until they are interrupted."""
SERVE: Final = "runspan serve --data ./data"
"""What readers of the other pages have running, with the sample runs, since they have read the README."""
RECEIVERS: Final = ("http://127.0.0.1:4318", "http://jaeger:4318")
"""Receivers that have the sample runs too, on the pages that name them."""
SETTLE_SECONDS: Final = 1.5
"""From the first line that a service prints until it counts as started."""


class Unexpected(Exception):
    """A line did not do what it is there for; the text has its output."""


class Shell:
    """The reader's shell."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._log = directory / "shell.log"
        self.directory = directory
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._services: list[tuple[str, Path]] = []
        self.has_background = False
        """Whether the page itself has started a service that goes on."""

    def type(self, line: str) -> str:
        """Return what a line prints. Unexpected if it fails, or takes two minutes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = f"mark-{secrets.token_hex(8)}"
        self._process.stdin.write(f"{line}\nstatus=$?; echo; echo {mark} $status\n")
        self._process.stdin.flush()
        # With what it has started, which may have its output too.
        watchdog = threading.Timer(120, os.killpg, (self._process.pid, signal.SIGKILL))
        watchdog.start()
        printed = []
        try:
            for text in self._process.stdout:
                if text.startswith(mark):
                    status = int(text.split()[1])
                    break
                printed.append(text)
            else:
                raise Unexpected(f"{line}\n{''.join(printed)}\nthe shell ended")
        finally:
            watchdog.cancel()
        output = "".join(printed).strip()
        if status != 0:
            raise Unexpected(f"{line}\n{output}\nexit status {status}")
        return output

    def start(self, line: str) -> str:
        """Start a line that goes on. Return its process id once it has printed something, or runs on silently."""
        log = self.directory / f"service-{len(self._services)}.log"
        self.type(f"{line.removesuffix('&').strip()} >{log} 2>&1 &")
        number = self.type("echo $!")
        self._services.append((number, log))
        self.has_background = self.has_background or line.endswith("&")
        deadline, printed_at = time.monotonic() + START_SECONDS, 0.0
        while time.monotonic() < deadline and (not printed_at or time.monotonic() < printed_at + SETTLE_SECONDS):
            time.sleep(0.1)
            if self.type(f"kill -0 {number} 2>/dev/null || echo ended"):
                raise Unexpected(f"{line}\n{log.read_text()}\nended by itself")
            if log.stat().st_size and not printed_at:
                printed_at = time.monotonic()
        return number

    def interrupt(self, number: str) -> None:
        """Stop a service. Unexpected if it does not end as one that was stopped."""
        # A shell without job control starts its background jobs with SIGINT ignored; SIGTERM is the same to them.
        output = self.type(f"kill {number}; wait {number}; echo status $?")
        if output.splitlines()[-1] != "status 0":
            raise Unexpected(f"a service does not end well: {output}\n{dict(self._services)[number].read_text()}")

    def printed_by_services(self) -> str:
        """Return what the services have printed."""
        return "".join(log.read_text() for _, log in self._services)

    def close(self) -> None:
        """End the services and the shell."""
        for number, _ in self._services:
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        self._process.kill()
        self._process.wait()


PASTED: Final = """
import json, sys
names = {}
for line in sys.stdin:
    exec(json.loads(line), names)
    print("done", flush=True)
"""
"""Runs the blocks that it reads, each a line of JSON, as one program."""


class Interpreter:
    """The Python in which the reader pastes the blocks of a page, started in the shell."""

    def __init__(self, shell: Shell) -> None:
        exported = shell.type("env -0 | base64 -w0")
        env = dict(item.split("=", 1) for item in b64decode(exported).decode().split("\0") if item)
        self._process = subprocess.Popen(
            ["python", "-c", PASTED],
            cwd=shell.directory,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, block: str) -> None:
        """Run a block. Unexpected if it raises, or logs anything."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        printed = []
        self._process.stdin.write(json.dumps(block) + "\n")
        self._process.stdin.flush()
        for text in self._process.stdout:
            if text == "done\n":
                break
            printed.append(text)
        else:
            raise Unexpected(f"{block}\n{''.join(printed)}")
        if "Traceback" in "".join(printed) or "runspan" in "".join(printed):
            raise Unexpected(f"{block}\n{''.join(printed)}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def leave(self) -> None:
        """End Python as a reader does. Unexpected if what is left to do then fails."""
        output, _ = self._process.communicate(timeout=30)
        if self._process.returncode != 0 or output:
            raise Unexpected(f"at the end of Python:\n{output}")


def lines_of(block: str) -> Iterator[str]:
    """Yield the commands of a console block, those on several lines joined."""
    yield from (line for line in re.sub(r"\\\n\s*", "", block).splitlines() if line and not line.startswith("#"))


def walk(page: Path, directory: Path) -> None:
    """Type everything that the page shows. Unexpected at the first line that does not do what it is there for."""
    text = page.read_text()
    env = prepare(directory, text)
    with ExitStack() as stack:
        for server, named in SERVERS.items():
            if named(text):
                stack.enter_context(server(directory))
        shell = Shell(directory / "clone", env)
        stack.callback(shell.close)
        interpreter: Interpreter | None = None
        own = None if page.name == "README.md" else shell.start(SERVE)
        if own is not None:
            for endpoint in ("http://127.0.0.1:8321", *(url for url in RECEIVERS if url in text)):
                shell.type(f"runspan export examples/runs --endpoint {endpoint} --quiet")
        for kind, block in BLOCK.findall(text):
            if kind == "python":
                say(f"python: {block.strip().splitlines()[0]} …")
                if interpreter is None:
                    interpreter = Interpreter(shell)
                    stack.callback(interpreter.kill)
                interpreter.run(block)
                continue
            foreground: list[str] = []
            for line in (moved(each, directory) for each in lines_of(block)):
                reason = next((why for pattern, why in UNABLE.items() if re.search(pattern, line)), None)
                if reason:
                    say(f"not typed: {line}: {reason}")
                    continue
                say(line)
                if not SERVICE.match(line):
                    shell.type(line)
                    continue
                if own is not None and line.startswith("runspan serve"):
                    shell.interrupt(own)
                    own = None
                if line.endswith("&"):
                    shell.start(line)
                else:
                    while foreground:
                        shell.interrupt(foreground.pop())
                    foreground.append(shell.start(line))
            while foreground:
                shell.interrupt(foreground.pop())
            if own is None and page.name != "README.md" and not shell.has_background:
                own = shell.start(SERVE)
        if interpreter is not None:
            interpreter.leave()
        if "Traceback" in shell.printed_by_services():
            raise Unexpected(shell.printed_by_services())


def moved(line: str, directory: Path) -> str:
    """Return the line with the folders of the reader's machine below the clone, and the archive that is there."""
    for folder in MOVED:
        line = re.sub(rf"(?<=\s){folder}(?=/)", f"{directory}{folder}", line)
    return re.sub(r"runspan-\d{8}T\d{6}Z", "runspan-*", line)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


# What the reader has.


def prepare(directory: Path, page: str) -> dict[str, str]:
    """Make a clone, and the files that pages take for granted. Return the environment of the shell."""
    clone = directory / "clone"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(sys.prefix)
    (clone / "runs").mkdir()
    for folder in MOVED:
        (directory / folder[1:]).mkdir(parents=True, exist_ok=True)
    samples = sorted((ROOT / "examples" / "runs").glob("*.json"))
    shutil.copy(samples[0], clone / "runs")
    (clone / "runs.ndjson").write_bytes(
        b"".join(b" ".join(each.read_bytes().split(b"\n")) + b"\n" for each in samples[:5])
    )
    for name, start, more in (
        ("yours.yaml", "service:\n", "exporters: {otlp_grpc/yours: {endpoint: tempo:4317, tls: {insecure: true}}}\n"),
        ("site.yaml", "settings: {", ""),
    ):
        for content in re.findall(rf"^```yaml\n({start}.*?)^```", page, re.MULTILINE | re.DOTALL):
            (clone / name).write_text(content + more)
    cert, _ = certificate(directory, "workflows.example.com")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNSPAN_", "OTEL_", "PYTHON"))}
    programs = made(directory / "bin")
    if needs_collector_program(page):
        (programs / "otelcol").symlink_to(require_program("otelcol"))
    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), str(programs), os.environ["PATH"]))
    return {**kept, "PATH": path, "SSL_CERT_FILE": str(cert), "PYTHONPATH": str(ROOT / "src")}


# The servers that pages name.


@contextmanager
def tempo(directory: Path) -> Iterator[None]:
    """Tempo on this machine, where its own documentation starts it: queries on port 3200, OTLP on 4317 and 4318."""
    folder = made(directory / "tempo")
    settings = tempo_config(str(folder), "127.0.0.1", [3200, 9095, 4317, 4318])
    file = folder / "tempo.json"
    file.write_text(json.dumps(settings))
    with running(
        [require_on_path("tempo"), f"-config.file={file}"], folder, lambda: answers("http://127.0.0.1:3200/ready")
    ):
        yield


@contextmanager
def jaeger(directory: Path) -> Iterator[None]:
    """Jaeger, its query API on port 16686 of this machine and of the host jaeger, OTLP on 4318 of the latter."""
    folder = made(directory / "jaeger")
    settings = jaeger_config(BADGER, str(folder), "127.0.0.2", [16686, 16685, 4318, 13133])
    settings["extensions"]["jaeger_query"]["http"]["endpoint"] = "0.0.0.0:16686"
    file = folder / "jaeger.json"
    file.write_text(json.dumps(settings))
    with running(
        [require_on_path("jaeger"), "--config", str(file)], folder, lambda: is_ready("http://127.0.0.2:13133")
    ):
        yield


@contextmanager
def collector(directory: Path) -> Iterator[None]:
    """The Collector of otel-collector.yaml on the host collector, with Tempo behind it."""
    folder = made(directory / "collector")
    env = {
        "HOST": "127.0.0.3",
        "QUEUE": str(folder / "queue"),
        "EXPORTERS": "[otlp_grpc/tempo]",
        "TEMPO": "127.0.0.1:4317",
    }
    env = {f"RUNSPAN_COLLECTOR_{name}": value for name, value in env.items()}
    command = [require_program("otelcol"), "--config", str(ROOT / "otel-collector.yaml")]
    with running(command, folder, lambda: answers("http://127.0.0.3:13133"), env):
        yield


@contextmanager
def platform(directory: Path) -> Iterator[None]:
    """The platform on its public name over TLS: a runspan server with the sample runs, which answers as it does."""
    folder = made(directory / "platform")
    runspan = [sys.executable, "-m", "runspan"]
    (directory / "clone" / "platform.key").write_text("key\n")
    command = [*runspan, "serve", "--data", str(folder / "data"), "--host", "127.0.0.4", "--port", "8399"]
    command += ["--allow-host", "workflows.example.com"]
    with running(command, folder, lambda: answers("http://127.0.0.4:8399/readyz")):
        export = [*runspan, "export", str(ROOT / "examples" / "runs"), "--endpoint", "http://127.0.0.4:8399", "--quiet"]
        subprocess.run(export, check=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        with socket.create_server(("127.0.0.4", 443)) as listening:
            threading.Thread(target=terminate_tls, args=(listening, context), daemon=True).start()
            yield


@contextmanager
def postgres(directory: Path) -> Iterator[None]:
    """PostgreSQL on the host db.internal, with the user, the password and the database of the pages."""
    import psycopg

    programs = find_programs()
    assert programs is not None
    server = OwnPostgres(programs, 5432)
    try:
        with psycopg.connect(server.base, autocommit=True) as connection:
            connection.execute("ALTER USER runspan PASSWORD 'PASSWORD'")
            connection.execute("CREATE DATABASE runspan")
        yield
    finally:
        server.stop()


def terminate_tls(listening: socket.socket, context: ssl.SSLContext) -> None:
    """Pass the bytes of each connection on to the server behind it."""
    with suppress(OSError):  # the page is done
        while True:
            raw, _ = listening.accept()
            threading.Thread(target=relay, args=(raw, context), daemon=True).start()


def relay(raw: socket.socket, context: ssl.SSLContext) -> None:
    with (
        suppress(OSError),
        context.wrap_socket(raw, server_side=True) as client,
        socket.create_connection(("127.0.0.4", 8399)) as server,
    ):
        threading.Thread(target=copy, args=(server, client), daemon=True).start()
        copy(client, server)


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def running(
    command: list[str], folder: Path, ready: Callable[[], bool], env: dict[str, str] | None = None
) -> Iterator[None]:
    program = Program(command, folder, {**os.environ, **(env or {})})
    program.wait_until(ready)
    try:
        yield
    finally:
        program.stop()


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def require_on_path(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, name
    return found


def needs_tempo(page: str) -> bool:
    """Tempo is the receiver of whoever names none too. A Collector that the page itself starts takes its ports."""
    sends = r"tempo[+:]|:4318\b|os\.environ|^runspan (export|sync) (?!.*--endpoint)"
    return "otelcol --config" not in page and re.search(sends, page, re.MULTILINE) is not None


def needs_collector_program(page: str) -> bool:
    return re.search("http://collector:|^otelcol ", page, re.MULTILINE) is not None


SERVERS: Final[dict[Callable[[Path], AbstractContextManager[None]], Callable[[str], object]]] = {
    tempo: needs_tempo,
    jaeger: re.compile(r"jaeger\+http|http://jaeger:").search,
    collector: re.compile("http://collector:").search,
    platform: re.compile(r"workflows\.example\.com").search,
    postgres: re.compile("@db.internal/").search,
}
"""The servers, and whether a page needs them."""


def main() -> None:
    page, directory = Path(sys.argv[1]), Path(sys.argv[2])
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{address} {' '.join(names)}\n" for address, names in NAMES.items()))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    try:
        walk(page, directory)
    except Unexpected as error:
        say(f"\n{page.name}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
