"""Health: one table, two faces, both held to it by a real scrape and a real OTLP request."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from runspan import Run, create_app
from runspan.backends.sqlite import SqliteStore
from runspan.delivery import ExportReport
from runspan.errors import SettingError
from runspan.telemetry import (
    INSTRUMENTS,
    CumulativeSource,
    Instrument,
    InstrumentKind,
    MetricsRegistry,
    delivery_samples,
)
from runspan.telemetry.instruments import (
    BACKLOG,
    EXPORTED,
    LAG,
    OLDEST_UNFINISHED,
    POLLED,
    QUEUE,
    REJECTED,
    RETENTION_MARGIN,
    RETRIED,
    UNFINISHED,
)
from runspan.telemetry.otel import is_enabled, push_metrics, register_instruments
from runspan.telemetry.prometheus import exposition, serve_metrics
from support.servers.process import Program, answers, free_ports
from support.servers.programs import require_program
from support.web import document
from support.web import serving as serving_app

DOCS = Path(__file__).parents[2] / "docs"
SECOND = 1_000_000_000
NOW = 1_764_000_000 * SECOND


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> MetricsRegistry:
    """Every metric reported once, each with a number of its own."""
    found = MetricsRegistry(clock)
    for number, metric in enumerate(INSTRUMENTS, 1):
        report(found, metric, number)
    return found


def report(health: MetricsRegistry, metric: Instrument, number: int) -> None:
    """Reports in the way of the metric's kind, so that it reads as the number."""
    if metric.kind is InstrumentKind.COUNTER:
        health.add(metric, number)
    elif metric.kind is InstrumentKind.GAUGE:
        health.set(metric, number)
    else:
        health.set_timestamp(metric, NOW + (number if metric.kind is InstrumentKind.UNTIL else -number) * SECOND)


def scraped(content: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }


# What is reported and read.


def test_counters_grow_and_gauges_stand(clock: Clock) -> None:
    """Additions add up, a level replaces the one before, and nothing is told that was not reported."""
    health = MetricsRegistry(clock)
    health.add(EXPORTED, 3)
    health.add(EXPORTED)
    health.set(QUEUE, 7)
    health.set(QUEUE, 2)
    assert health.collect() == {EXPORTED: 4, QUEUE: 2}


def test_the_counters_of_a_part_are_born_at_zero(clock: Clock) -> None:
    """A rate sees the first event; counters of parts that do not run, and gauges, are left out."""
    read = MetricsRegistry(clock, parts=("export",)).collect()
    assert read == {
        metric: 0 for metric in INSTRUMENTS if metric.part == "export" and metric.kind is InstrumentKind.COUNTER
    }
    assert read


def test_ages_grow_although_nobody_reports(clock: Clock) -> None:
    """A hung part is seen: its lag grows with the clock, and what it has to do before a moment falls below zero."""
    health = MetricsRegistry(clock)
    health.set_timestamp(LAG, NOW - 5 * SECOND)
    health.set_timestamp(RETENTION_MARGIN, NOW + 30 * SECOND)
    assert health.collect() == {LAG: 5.0, RETENTION_MARGIN: 30.0}
    clock.now += 60 * SECOND
    assert health.collect() == {LAG: 65.0, RETENTION_MARGIN: -30.0}
    health.set_timestamp(LAG, None)
    health.set_timestamp(RETENTION_MARGIN, None)
    assert health.collect() == {LAG: 0.0}


def test_a_moment_in_the_future_is_no_negative_age(clock: Clock) -> None:
    """The clock of the platform may be ahead of ours."""
    health = MetricsRegistry(clock)
    health.set_timestamp(POLLED, NOW + 5 * SECOND)
    assert health.collect() == {POLLED: 0.0}


def test_what_sources_tell_adds_up(clock: Clock) -> None:
    """Two deliveries count together, their queues too, the earlier of two moments counts, and a total of 0 erases
    nothing."""
    health = MetricsRegistry(clock, parts=("export",))
    first, second = (
        ExportReport(runs_accepted=5, runs_pending=2, retries=1),
        ExportReport(runs_rejected=1, runs_unknown=2),
    )
    health.register(lambda: delivery_samples(first))
    health.register(lambda: delivery_samples(second))
    health.register(lambda: {OLDEST_UNFINISHED: NOW - 9 * SECOND})
    health.register(lambda: {OLDEST_UNFINISHED: NOW - 4 * SECOND})
    health.register(lambda: {OLDEST_UNFINISHED: None})
    health.add(EXPORTED, 10)
    read = health.collect()
    assert (read[EXPORTED], read[REJECTED], read[RETRIED], read[QUEUE]) == (15, 3, 1, 2)
    assert read[OLDEST_UNFINISHED] == 9.0


def test_a_report_of_the_wrong_kind_is_a_mistake(clock: Clock) -> None:
    """A counter cannot be set nor fall, a level not be a moment."""
    health = MetricsRegistry(clock)
    with pytest.raises(TypeError, match=r"runspan\.export\.runs is of kind counter"):
        health.set(EXPORTED, 1)
    with pytest.raises(TypeError):
        health.set_timestamp(BACKLOG, NOW)
    with pytest.raises(TypeError):
        health.add(LAG)
    with pytest.raises(ValueError, match="only grows"):
        health.add(EXPORTED, -1)


def test_no_report_is_lost_between_threads(clock: Clock) -> None:
    """Eight threads that count together count exactly, while another reads."""
    health = MetricsRegistry(clock)

    def work() -> None:
        for _ in range(2000):
            health.add(EXPORTED)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = [health.collect().get(EXPORTED, 0) for _ in range(100)]
    for thread in threads:
        thread.join()
    assert health.collect()[EXPORTED] == 16_000
    assert seen == sorted(seen)


# The table.


def test_the_names_follow_the_conventions() -> None:
    """Names are unique in both forms, begin with runspan, and units are seconds or nouns in braces."""
    for metric in INSTRUMENTS:
        assert re.fullmatch(r"runspan(\.[a-z]+(_[a-z]+)*){2,3}", metric.name)
        assert re.fullmatch(r"s|\{[a-z]+\}", metric.unit)
        assert metric.about.endswith(".")
        assert (metric.unit == "s") == (metric.kind in {InstrumentKind.AGE, InstrumentKind.UNTIL})
    for names in ({metric.name for metric in INSTRUMENTS}, {metric.prometheus_name for metric in INSTRUMENTS}):
        assert len(names) == len(INSTRUMENTS)
    for name in {metric.name for metric in INSTRUMENTS}:
        assert not any(other.startswith(f"{name}.") for other in {metric.name for metric in INSTRUMENTS}), name


def test_the_documentation_has_the_table() -> None:
    """Every row stands in docs/health.md as the code has it, and no other; its queries name metrics that exist."""
    content = (DOCS / "health.md").read_text()
    told = [line for line in content.splitlines() if line.startswith("| `runspan.")]
    assert told == [
        f"| `{item.name}` | `{item.unit}` | `{item.prometheus_name}` | {item.about} |" for item in INSTRUMENTS
    ]
    known = {metric.prometheus_name for metric in INSTRUMENTS}
    watched = "".join(line for line in content.splitlines(keepends=True) if "_…" not in line)
    assert set(re.findall(r"runspan_[a-z_]+", watched)) <= known


# Prometheus.


def test_a_scrape_tells_every_metric(health: MetricsRegistry) -> None:
    """The server answers /metrics with each number under its name and type, until it is closed."""
    with serve_metrics(health, "127.0.0.1", 0) as url:
        answer = httpx.get(url, trust_env=False)
        assert answer.headers["content-type"].startswith("text/plain")
    assert scraped(answer.content) == {metric.prometheus_name: n for n, metric in enumerate(INSTRUMENTS, 1)}
    kinds = {family.name: family.type for family in text_string_to_metric_families(answer.text)}
    assert kinds["runspan_export_runs"] == "counter"
    assert kinds["runspan_sync_lag_seconds"] == "gauge"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_a_port_that_is_taken_is_a_setting_error(health: MetricsRegistry) -> None:
    """The error names the address."""
    with serve_metrics(health, "127.0.0.1", 0) as url:
        port = httpx.URL(url).port or 0
        with pytest.raises(SettingError, match=f"127.0.0.1:{port}"), serve_metrics(health, "127.0.0.1", port):
            pass


def test_promtool_finds_nothing_wrong_with_the_text(health: MetricsRegistry) -> None:
    """Prometheus' own linter agrees with names, types and help."""
    promtool = require_program("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=exposition(health), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# OpenTelemetry.


def test_a_given_provider_gets_every_metric(health: MetricsRegistry) -> None:
    """Name, unit, description, kind and value are those of the table; what was not reported gives no point."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    register_instruments(health, provider)
    register_instruments(
        MetricsRegistry(lambda: NOW), MeterProvider([silent := InMemoryMetricReader()], shutdown_on_exit=False)
    )
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "runspan"
    told = {item.name: item for item in scope.metrics}
    assert told.keys() == {metric.name for metric in INSTRUMENTS}
    for number, metric in enumerate(INSTRUMENTS, 1):
        item = told[metric.name]
        (point,) = item.data.data_points
        assert (item.unit, item.description, point.value) == (metric.unit, metric.about, number)  # type: ignore[union-attr]
        assert getattr(item.data, "is_monotonic", False) == (metric.kind is InstrumentKind.COUNTER)
    empty = silent.get_metrics_data()
    assert empty is None or not any(scope.metrics for item in empty.resource_metrics for scope in item.scope_metrics)
    provider.shutdown()


@contextmanager
def metrics_receiver() -> Iterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """A receiver of OTLP metrics over HTTP: its URL and what it got."""
    got: list[ExportMetricsServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportMetricsServiceRequest.FromString(body))
            answer = ExportMetricsServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/metrics", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_last_numbers_are_sent_at_the_end(health: MetricsRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an endpoint of their own the metrics go there over OTLP, the final state included."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with metrics_receiver() as (url, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", url)
        with push_metrics(health, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url}, service_name="exporter") as sends:
            assert sends
            health.add(EXPORTED, 1000)
    (resource,) = got[-1].resource_metrics
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "exporter"
    numbers = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert numbers.keys() == {metric.name for metric in INSTRUMENTS}
    (point,) = numbers[EXPORTED.name].sum.data_points
    assert point.as_int == 1001


COLLECTOR = """
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:%d"}}}}
exporters: {prometheus: {endpoint: "127.0.0.1:%d", without_scope_info: true}}
service:
  pipelines: {metrics: {receivers: [otlp], exporters: [prometheus]}}
  telemetry: {metrics: {level: none}}
"""


def test_a_collector_gives_them_the_names_of_the_other_face(
    health: MetricsRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether Prometheus scrapes runspan, or a Collector that runspan sends to, a query finds the same numbers."""
    otlp, scraping = free_ports(2)
    (tmp_path / "config.yaml").write_text(COLLECTOR % (otlp, scraping))
    collector = Program([require_program("otelcol"), "--config", "config.yaml"], tmp_path)
    try:
        collector.wait_until(lambda: answers(f"http://127.0.0.1:{scraping}/metrics"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{otlp}/v1/metrics")
        with push_metrics(health, os.environ) as sends:
            assert sends
        told = scraped(httpx.get(f"http://127.0.0.1:{scraping}/metrics", trust_env=False).content)
    finally:
        collector.stop()
    assert {name: value for name, value in told.items() if name.startswith("runspan_")} == scraped(exposition(health))


def test_nothing_is_sent_unless_somebody_asks(health: MetricsRegistry) -> None:
    """An endpoint for traces is none for metrics, `none` turns them off, and a word that means nothing is told."""
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    metrics = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"}
    assert not is_enabled({})
    assert not is_enabled(traces)
    assert is_enabled(metrics)
    assert is_enabled({**traces, "OTEL_METRICS_EXPORTER": "otlp"})
    assert not is_enabled({**metrics, "OTEL_METRICS_EXPORTER": "none"})
    with pytest.raises(SettingError, match="OTEL_METRICS_EXPORTER"):
        is_enabled({"OTEL_METRICS_EXPORTER": "prometheus"})
    with push_metrics(health, traces) as sends:
        assert not sends
    with (
        pytest.raises(SettingError, match="OTEL_EXPORTER_OTLP_PROTOCOL"),
        push_metrics(health, {**metrics, "OTEL_EXPORTER_OTLP_PROTOCOL": "udp"}),
    ):
        pass


# The server's own.


def test_the_server_tells_its_unfinished_runs(tmp_path: Path, clock: Clock) -> None:
    """Of every tenant, the number of runs that have not ended and the age of the oldest; a run without any time has
    no age; once all have ended the age is 0."""
    with SqliteStore(tmp_path, clock=clock) as store, serving_app(create_app(store, store, clock=clock)) as client:

        def numbers() -> tuple[float, float]:
            told = scraped(client.get("/metrics").content)
            return told[UNFINISHED.prometheus_name], told[OLDEST_UNFINISHED.prometheus_name]

        assert numbers() == (0, 0)
        hour = {"status": "running", "startedAt": "2025-11-24T15:00:00.000Z", "completedAt": None}
        for tenant, run_id, members in (
            ("", "ended", {}),
            ("", "running", hour),
            ("acme", "waiting", {**hour, "status": "suspended", "startedAt": "2025-11-24T14:00:00.000Z"}),
            ("zeta", "queued", {"status": "pending", "startedAt": None, "createdAt": None}),
        ):
            store.put(Run.from_dict(document(run_id, **members)), tenant=tenant, observed_at=NOW)
        assert numbers() == (3, 2 * 3600)
        store.put(Run.from_dict(document("waiting")), tenant="acme", observed_at=NOW)
        assert numbers() == (2, 3600)


def test_the_report_of_a_delivery_is_what_health_tells() -> None:
    """Every number of the report that health knows of has a metric of its own."""
    numbered = replace(
        ExportReport(), runs_accepted=1, runs_rejected=2, runs_pending=4, documents_refused=8, requests=16, retries=32
    )
    assert sorted(value or 0 for value in delivery_samples(numbered).values()) == [1, 2, 4, 8, 16, 32]


def test_parts_that_follow_each_other_count_on(health: MetricsRegistry) -> None:
    """Counters never fall when one part takes the place of another; levels are those of the part that is there."""
    parts = CumulativeSource()
    assert parts.collect() == {}
    parts.replace(lambda: {EXPORTED: 3, QUEUE: 7})
    assert parts.collect() == {EXPORTED: 3, QUEUE: 7}
    parts.replace(lambda: {EXPORTED: 2, RETRIED: 1, QUEUE: 1})
    assert parts.collect() == {EXPORTED: 5, RETRIED: 1, QUEUE: 1}
    parts.replace(lambda: {LAG: None})
    assert parts.collect() == {EXPORTED: 5, RETRIED: 1, LAG: None}
    before = health.collect()[EXPORTED]
    health.register(parts.collect)
    assert health.collect()[EXPORTED] == before + 5
