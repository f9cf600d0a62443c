"""Alertmanager for tests: ``deploy/alertmanager.yaml`` as it stands, and a webhook that keeps what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx
import yaml

from support.servers.process import Program, answers, free_ports
from support.servers.programs import ROOT, require_program

CONFIG: Final = ROOT / "deploy" / "alertmanager.yaml"


class Webhook:
    """An HTTP listener on a free port of loopback: where Alertmanager's notifications arrive."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._notifications: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Webhook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, receiver: str) -> str:
        """Where the notifications for a receiver of the configuration go."""
        return f"http://127.0.0.1:{self._server.server_port}/{receiver}"

    def alerts(self, name: str = "", status: str = "firing") -> list[dict[str, Any]]:
        """The alerts that arrived in this status, of one rule or of all; each once for each notification."""
        with self._arrived:
            found = [alert for notification in self._notifications for alert in notification["alerts"]]
        return [alert for alert in found if alert["status"] == status and name in {"", alert["labels"]["alertname"]}]

    def receivers(self) -> dict[str, set[str]]:
        """The names of the alerts that fired, by the receiver that was notified."""
        told: dict[str, set[str]] = {}
        with self._arrived:
            for notification in self._notifications:
                firing = [alert for alert in notification["alerts"] if alert["status"] == "firing"]
                told.setdefault(notification["receiver"], set()).update(
                    alert["labels"]["alertname"] for alert in firing
                )
        return told

    def wait_for(self, found: Callable[[], bool], seconds: float) -> bool:
        """Whether it holds at the latest after so long; looked at after every notification."""
        with self._arrived:
            return self._arrived.wait_for(found, seconds)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with webhook._arrived:
                    webhook._notifications.append({"receiver": self.path.strip("/"), **body})
                    webhook._arrived.notify_all()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing: the test reads what arrived."""

        return Handler


@dataclass
class Alertmanager:
    """An Alertmanager that notifies a webhook. url: its address; address: the same without the scheme."""

    url: str
    program: Program

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def alerts(self) -> list[dict[str, Any]]:
        """What it holds, silenced and inhibited ones too."""
        answer = httpx.get(f"{self.url}/api/v2/alerts", timeout=10, trust_env=False)
        found: list[dict[str, Any]] = answer.raise_for_status().json()
        return found

    def stop(self) -> None:
        """Ends it."""
        self.program.stop()


def config(webhook: Webhook | None) -> dict[str, Any]:
    """The file's settings; every receiver also notifies the webhook, where one is given."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    for receiver in settings["receivers"] if webhook is not None else ():
        receiver["webhook_configs"] = [{"url": webhook.url(receiver["name"])}]
    return settings


def start_alertmanager(directory: Path, webhook: Webhook) -> Alertmanager:
    """An Alertmanager in a directory."""
    (port,) = free_ports(1)
    file = directory / "alertmanager.json"
    file.write_text(json.dumps(config(webhook)))  # JSON is YAML
    command = [
        require_program("alertmanager"),
        f"--config.file={file}",
        f"--storage.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",  # alone: it would listen for peers beyond loopback
    ]
    url = f"http://127.0.0.1:{port}"
    program = Program(command, directory)
    program.wait_until(lambda: answers(f"{url}/-/ready"))
    return Alertmanager(url, program)
