"""The server: its address, its graceful shutdown, and that it prints nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from flask import Flask, Response

from runspan.backends.sqlite import SqliteStore
from runspan.errors import ConfigError
from runspan.web.app import create_app
from runspan.web.server import WebServer
from support.web import JSON, PROTOBUF, document, otlp, serving

SCRIPT = """
import sys
from runspan.backends.sqlite import SqliteStore
from runspan.cli.app import handle_signals
from runspan.web.app import create_app
from runspan.web.server import WebServer

store = SqliteStore(sys.argv[1])
server = WebServer(create_app(store, store))
with handle_signals(server.stop, repeat=True):
    print(server.url, flush=True)
    server.run()
store.close()
print("closed", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_the_process_down_gracefully(tmp_path: Path, number: int) -> None:
    """It closes the store, prints nothing of its own, exits with 0, and loses no data."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url) as client:
            assert client.post("/api/v1/runs", content=json.dumps(document()), headers=JSON).status_code == 201
            assert client.post("/v1/traces", content=otlp(document("run_2")), headers=PROTOBUF).status_code == 200
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("closed\n", "", 0)
    with SqliteStore(tmp_path) as store:
        assert json.loads(store.document("run_1").text)["id"] == "run_1"
        assert json.loads(store.document("run_2").text)["id"] == "run_2"


def slow_app(entered: threading.Event, release: threading.Event) -> Flask:
    app = Flask("slow")

    @app.get("/slow")
    def slow() -> Response:
        entered.set()
        assert release.wait(30)
        return Response(b"x" * 3_000_000)

    return app


def test_running_requests_are_finished_before_shutdown() -> None:
    """Stopping refuses new connections at once, and the running request gets its complete response."""
    entered, release = threading.Event(), threading.Event()
    server = WebServer(slow_app(entered, release))
    thread = threading.Thread(target=server.run)
    thread.start()
    responses: list[httpx.Response] = []
    requesting = threading.Thread(target=lambda: responses.append(httpx.get(f"{server.url}/slow", timeout=60)))
    requesting.start()
    assert entered.wait(30)
    server.stop()
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        except ConnectionError:
            break
    assert thread.is_alive()
    release.set()
    requesting.join(60)
    thread.join(60)
    assert not thread.is_alive()
    assert [(response.status_code, len(response.content)) for response in responses] == [(200, 3_000_000)]
    server.stop()


def test_an_idle_connection_does_not_delay_shutdown() -> None:
    """Clients keep connections open; the server closes them on shutdown."""
    server = WebServer(Flask("idle"))
    thread = threading.Thread(target=server.run)
    thread.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_an_address_in_use_raises_config_error() -> None:
    """The error names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            WebServer(Flask("x"), port=port)


def test_many_concurrent_clients_all_get_responses(tmp_path: Path) -> None:
    """Several threads write and read; every acknowledged run is stored."""
    with SqliteStore(tmp_path) as store, serving(create_app(store, store)) as client:

        def work(number: int) -> None:
            for count in range(10):
                text = json.dumps(document(f"run_{number}_{count}"))
                statuses.append(client.post("/api/v1/runs", content=text, headers=JSON).status_code)
                statuses.append(client.get(f"/api/v1/runs/run_{number}_{count}").status_code)

        statuses: list[int] = []
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(set(statuses)) == [200, 201]
        assert len(client.get("/api/v1/runs?limit=200").json()["data"]) == 80
