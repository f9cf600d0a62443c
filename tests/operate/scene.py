"""The pipeline at work: engine documents through a real Collector into a real runspan, watched by a real Prometheus.

Everything that a dashboard shows happens here: runs of every status, agents, retries, revisions, and what goes wrong on
the way: a backend that is down, a full queue, a backend that refuses for good.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from operate.fresh import samples, unfinished, whole, write
from operate.kit import wait_until
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.model.document import TERMINAL_RUN_STATUSES
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.cli import Running, running, runspan, server
from support.servers.alertmanager import Webhook, start_alertmanager
from support.servers.collector import Collector, start_collector
from support.servers.process import free_ports
from support.servers.prometheus import Prometheus, start_prometheus

QUEUE_BYTES = 2_000_000
"""Of each exporter's queue: room for all documents, and soon full while a backend is down."""
LARGE = 300_000
"""Bytes of the payload of a large run."""
HOUR = 3_600_000_000_000
OPEN = ("suspended", "running")
RESOURCE = ("deployment.environment.name=test", "service.namespace=shop")


@dataclass
class Scene:
    """What a test asks: Prometheus, all runs that were sent, the file with them, and the one to drill into.

    calm: seconds since 1970, when all had been counted and nothing had gone wrong yet.
    """

    prometheus: Prometheus
    collector: Collector
    documents: Path
    runs: list[Run]
    run: Run
    calm: float


@contextmanager
def scene(directory: Path) -> Iterator[Scene]:
    """The pipeline with everything that happened in it, until the block ends."""
    now = time.time_ns()
    run = Run.from_json(whole(now))
    dropped = [*samples(now, "_a"), run.text, *[unfinished(now, status, f"run_{status}") for status in OPEN]]
    listed = samples(now, "_b")
    runs = [Run.from_json(text) for text in (*dropped, *listed)]
    with ExitStack() as opened:
        data = directory / "data"
        with SqliteStore(data) as store:
            store.put(Run.from_json(unfinished(now, "running", "run_stuck")), observed_at=now - 4 * HOUR)
        url, _ = opened.enter_context(server(data))
        (closed,) = free_ports(1)
        # Tempo is down: nobody listens on its port, and the queue for it fills.
        collector = start_collector(
            made(directory, "collector"),
            tempo=f"127.0.0.1:{closed}",
            runspan=url,
            env={"QUEUE_BYTES": str(QUEUE_BYTES)},
        )
        opened.callback(collector.stop)
        webhook = opened.enter_context(Webhook())
        alertmanager = start_alertmanager(made(directory, "alertmanager"), webhook)
        opened.callback(alertmanager.stop)
        targets = {
            "span-metrics": collector.url("SPANS").removeprefix("http://"),
            "health": collector.url("HEALTH").removeprefix("http://"),
            "collector": collector.url("OWN").removeprefix("http://"),
            "runspan": url.removeprefix("http://"),
            "alertmanager": alertmanager.address,
        }
        prometheus = start_prometheus(made(directory, "prometheus"), targets, alertmanager=alertmanager.address)
        opened.callback(prometheus.stop)
        wait_until(lambda: prometheus.up().items() >= dict.fromkeys(targets, True).items(), 30, "targets are not up")
        watched = made(directory, "watched")
        write(watched / "runs.ndjson", dropped)
        opened.enter_context(
            telling(collector, "export", "--watch", watched, "--poll", "1s", "--endpoint", collector.otlp)
        )
        platform, _ = opened.enter_context(server(directory / "platform"))
        export(write(directory / "listed.ndjson", listed), platform)
        opened.enter_context(synced(directory, platform, collector))
        ended = sum(run.envelope.status in TERMINAL_RUN_STATUSES for run in runs)
        wait_until(lambda: settled(prometheus, ended), 60, f"not all of {ended} runs were counted")
        calm = time.time()
        go_wrong(data, url, collector)
        # What the platform lists while the Collector refuses is the backlog of the sync.
        export(write(directory / "late.ndjson", [whole(now, "run_late", padding=LARGE)]), platform)
        yield Scene(prometheus, collector, write(directory / "all.ndjson", [*dropped, *listed]), runs, run, calm)


def settled(prometheus: Prometheus, ended: int) -> bool:
    """Whether Prometheus knows of all runs: the number and durations of those that ended, and those that did not."""
    expected = {
        "sum(runspan_runs_total)": ended,
        'sum(traces_span_metrics_duration_seconds_count{runspan_role="run"})': ended,
        'sum(runspan_runs_unfinished{job="runspan"})': len(OPEN) + 1,
    }
    return all(
        sum(int(row["value"][1]) for row in prometheus.query(query)) >= count for query, count in expected.items()
    )


def synced(directory: Path, platform: str, collector: Collector) -> AbstractContextManager[Running]:
    """A sync that follows another runspan server, as it would the platform."""
    file = directory / "sync.sqlite3"
    where = (platform, "--endpoint", collector.otlp, "--state-file", file)
    return telling(collector, "sync", *where, "--follow", "--poll", "1s", "--retention", "30")


def telling(collector: Collector, name: str, *arguments: object) -> AbstractContextManager[Running]:
    """A command that runs on and tells the Collector how it fares, until the block ends."""
    return running(
        name,
        *arguments,
        env={
            "OTEL_RESOURCE_ATTRIBUTES": ",".join((*RESOURCE, f"service.instance.id={name}")),
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.otlp}/v1/metrics",
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
        },
    )


def go_wrong(data: Path, url: str, collector: Collector) -> None:
    """A key closes runspan, so that it refuses the Collector for good; then large runs fill the queue of the dead
    backend."""
    address = f"{url}/api/v1/runs/run_whole"
    wait_until(lambda: httpx.get(address, trust_env=False).is_success, 20, "the run did not arrive")
    runspan("keys", "create", "--data", data, "--name", "somebody")
    answer = None
    for number in range(20):
        big = Run.from_json(b'{"id":"big_%d","status":"completed","input":"%s"}' % (number, b"x" * LARGE))
        answer = httpx.post(
            f"{collector.otlp}/v1/traces",
            content=request_bytes(Resource(), map(scoped_bytes, encode(big))),
            headers={"content-type": "application/x-protobuf"},
            trust_env=False,
        )
        if answer.status_code == 503:
            return
    raise AssertionError(f"the queue is not full: {answer}")


def export(documents: Path, endpoint: str) -> None:
    """Sends the documents as the services of a shop's test environment would."""
    runspan("export", documents, "--endpoint", endpoint, OTEL_RESOURCE_ATTRIBUTES=",".join(RESOURCE))


def made(parent: Path, name: str) -> Path:
    directory = parent / name
    directory.mkdir()
    return directory
