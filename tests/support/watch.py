"""A watched folder under the control of a test, and the documents for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runspan.backends.sqlite import SqliteStore
from runspan.delivery import OnSettled, OtlpExporter, RetryPolicy, connect, exporter_config
from runspan.otlp.protobuf_writer import Resource
from runspan.telemetry import InstrumentKind, MetricsRegistry
from runspan.telemetry.registry import EXPORTED
from runspan.watch.poller import MAX_QUIET_WAIT, DirectoryPoller
from runspan.watch.service import WatchConfig, WatchService
from runspan.watch.state_db import WatchState

NOW = 1_764_000_000 * 10**9
REST = int(MAX_QUIET_WAIT) + 5
"""Polls, two seconds apart, after which a file that does not change was moved."""


class Bench:
    """A watched folder that is polled when the test says so; polls are two seconds apart on the test's own clock."""

    def __init__(self, path: Path, url: str, **options: str) -> None:
        self.path = path
        self.seconds = 0.0
        self.clock: Callable[[], int] = time.time_ns
        self.notes: list[str] = []
        self.metrics = MetricsRegistry(lambda: NOW, components=("export", "watch"))
        self._url = url
        self._options = options
        self.polling: dict[str, Any] = {"done_folder": options.get("done_folder", "")}
        """Options of the poller."""
        self.open()

    def open(self, url: str = "") -> None:
        """Begin like a new process."""
        self.state = WatchState(self.path / ".state", url or "here", "")
        self.poller = DirectoryPoller(str(self.path), self.state, lambda: self.seconds, **self.polling)

    def poll(self, times: int = 2, *, seconds: float = 2.0) -> None:
        """Run so many rounds. It takes two to see that a file is complete."""
        left = [None] * times

        def wait(pause: float) -> bool:
            self.pause = pause
            self.seconds += seconds
            return not left or bool(left.pop())

        self.watch(wait).run()

    def watch(self, wait: Callable[[float], bool]) -> WatchService:
        """Return a service with metrics of its own, whose counters continue those of the one before."""
        counters = {
            metric: value for metric, value in self.metrics.collect().items() if metric.kind is InstrumentKind.COUNTER
        }
        self.metrics = MetricsRegistry(lambda: NOW, components=("export", "watch"))
        self.metrics.register(lambda: counters)
        return WatchService(
            self.poller,
            self.state,
            WatchConfig("", Resource("test"), 2.0, **self._options),
            connect=self._connect,
            wait=wait,
            clock=self.clock,
            metrics=self.metrics,
            note=self.notes.append,
        )

    def restart(self) -> None:
        self.state.close()
        self.open()

    def write(self, name: str, *documents: dict[str, object], replaced: bool = True) -> Path:
        path = self.path / name
        text = b"".join(json.dumps(document).encode() + b"\n" for document in documents)
        if not replaced:
            text = path.read_bytes() + text
        path.write_bytes(text)
        return path

    def sent(self) -> float:
        """Return how many runs were accepted until now."""
        return self.metrics.collect()[EXPORTED]

    def _connect(self, on_settled: OnSettled) -> OtlpExporter:
        return connect(exporter_config({}, endpoint=self._url), retry=RetryPolicy(max_time=0.0), on_settled=on_settled)


def run(run_id: str, status: str = "completed", **members: object) -> dict[str, object]:
    return {"id": run_id, "status": status, "startedAt": "2025-01-15T09:00:01.000Z", **members}


def stored(store: SqliteStore, run_id: str) -> dict[str, object]:
    document = store.document(run_id)
    assert document.incomplete == ()
    found: dict[str, object] = json.loads(document.text)
    return found
