"""Metrics: the registry, the table of instruments, and both exporters with a real scrape and a real OTLP request."""

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
from runspan.delivery import ExportReport, export_samples
from runspan.errors import ConfigError
from runspan.telemetry import (
    INSTRUMENTS,
    Instrument,
    InstrumentKind,
    MetricsRegistry,
)
from runspan.telemetry.otel import is_enabled, push_metrics, register_instruments
from runspan.telemetry.prometheus import serve_metrics
from runspan.telemetry.registry import (
    EXPORTED,
    LAG,
    OLDEST_UNFINISHED,
    POLLED,
    QUEUE,
    REJECTED,
    RETENTION_MARGIN,
    RETRIED,
    STARTED,
    UNFINISHED,
)
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
def registry(clock: Clock) -> MetricsRegistry:
    """A registry with every metric reported once, each with a different value."""
    registry = MetricsRegistry(clock)
    registry.register(lambda: {metric: sample_of(metric, number) for number, metric in enumerate(INSTRUMENTS, 1)})
    return registry


def sample_of(metric: Instrument, number: int) -> float:
    """Return the sample with which the value of a metric is the number."""
    if metric.kind is InstrumentKind.AGE:
        return NOW - number * SECOND
    return NOW + number * SECOND if metric.kind is InstrumentKind.UNTIL else number


def exposition(registry: MetricsRegistry) -> bytes:
    """Return the metrics as Prometheus scrapes them."""
    with serve_metrics(registry, "127.0.0.1", 0) as url:
        return httpx.get(url, trust_env=False).content


def scraped(content: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }


# Reporting and collecting.


def test_a_source_is_read_on_each_collection(clock: Clock) -> None:
    """Metrics have the values that the source reports now, and unreported ones are absent."""
    registry = MetricsRegistry(clock)
    samples = {EXPORTED: 3, QUEUE: 7}
    registry.register(lambda: samples)
    assert registry.collect() == {EXPORTED: 3, QUEUE: 7}
    samples[EXPORTED], samples[QUEUE] = 4, 2
    assert registry.collect() == {EXPORTED: 4, QUEUE: 2}


def test_the_counters_of_a_component_start_at_zero(clock: Clock) -> None:
    """Counters of the given components are 0 from the start; other metrics are absent."""
    collected = MetricsRegistry(clock, components=("export",)).collect()
    assert collected == {
        metric: 0 for metric in INSTRUMENTS if metric.component == "export" and metric.kind is InstrumentKind.COUNTER
    }
    assert collected


def test_ages_grow_without_reports(clock: Clock) -> None:
    """AGE metrics grow and UNTIL metrics fall with the clock, so that a hung component is noticed."""
    registry = MetricsRegistry(clock)
    samples: dict[Instrument, float | None] = {LAG: NOW - 5 * SECOND, RETENTION_MARGIN: NOW + 30 * SECOND}
    registry.register(lambda: samples)
    assert registry.collect() == {LAG: 5.0, RETENTION_MARGIN: 30.0}
    clock.now += 60 * SECOND
    assert registry.collect() == {LAG: 65.0, RETENTION_MARGIN: -30.0}
    samples.update({LAG: None, RETENTION_MARGIN: None})
    assert registry.collect() == {LAG: 0.0}


def test_a_timestamp_in_the_future_is_no_negative_age(clock: Clock) -> None:
    """The age is 0 for a timestamp in the future, since the platform's clock may be ahead."""
    registry = MetricsRegistry(clock)
    registry.register(lambda: {POLLED: NOW + 5 * SECOND})
    assert registry.collect() == {POLLED: 0.0}


def test_sources_are_combined(clock: Clock) -> None:
    """Counters and gauges of sources are summed, and of several timestamps the earliest counts."""
    registry = MetricsRegistry(clock, components=("export",))
    first, second = (
        ExportReport(runs_accepted=5, runs_pending=2, retries=1),
        ExportReport(runs_rejected=3),
    )
    registry.register(lambda: export_samples(first))
    registry.register(lambda: export_samples(second))
    registry.register(lambda: {OLDEST_UNFINISHED: NOW - 9 * SECOND})
    registry.register(lambda: {OLDEST_UNFINISHED: NOW - 4 * SECOND})
    registry.register(lambda: {OLDEST_UNFINISHED: None})
    registry.register(lambda: {EXPORTED: 10})
    collected = registry.collect()
    assert (collected[EXPORTED], collected[REJECTED], collected[RETRIED], collected[QUEUE]) == (15, 3, 1, 2)
    assert collected[OLDEST_UNFINISHED] == 9.0


# The table.


def test_names_and_units_follow_the_conventions() -> None:
    """Names are unique in OpenTelemetry and Prometheus, and units are seconds or nouns in braces."""
    for metric in INSTRUMENTS:
        assert re.fullmatch(r"runspan(\.[a-z]+(_[a-z]+)*){2,3}", metric.name)
        assert re.fullmatch(r"s|\{[a-z]+\}", metric.unit)
        assert metric.description.endswith(".")
        assert (metric.unit == "s") == (metric.kind in {InstrumentKind.AGE, InstrumentKind.UNTIL})
    for names in ({metric.name for metric in INSTRUMENTS}, {metric.prometheus_name for metric in INSTRUMENTS}):
        assert len(names) == len(INSTRUMENTS)
    for name in {metric.name for metric in INSTRUMENTS}:
        assert not any(other.startswith(f"{name}.") for other in {metric.name for metric in INSTRUMENTS}), name


def test_the_documentation_has_the_table() -> None:
    """The table in docs/health.md is that of the code, and its queries use existing metrics."""
    content = (DOCS / "health.md").read_text()
    rows = [line for line in content.splitlines() if line.startswith("| `runspan.")]
    assert rows == [
        f"| `{item.name}` | `{item.unit}` | `{item.prometheus_name}` | {item.description} |" for item in INSTRUMENTS
    ]
    known = {metric.prometheus_name for metric in INSTRUMENTS} | {STARTED.replace(".", "_")}
    used = "".join(line for line in content.splitlines(keepends=True) if "_…" not in line)
    assert set(re.findall(r"runspan_[a-z_]+", used)) <= known


# Prometheus.


def test_a_scrape_has_every_metric(registry: MetricsRegistry) -> None:
    """The server returns each value with name and type, until it is closed."""
    with serve_metrics(registry, "127.0.0.1", 0) as url:
        response = httpx.get(url, trust_env=False)
        assert response.headers["content-type"].startswith("text/plain")
    assert scraped(response.content) == {metric.prometheus_name: n for n, metric in enumerate(INSTRUMENTS, 1)}
    kinds = {family.name: family.type for family in text_string_to_metric_families(response.text)}
    labels = {
        family.name: [sample.labels for sample in family.samples]
        for family in text_string_to_metric_families(response.text)
    }
    assert labels["runspan_export_runs"] == [{"runspan_started": registry.started}]
    assert labels["runspan_sync_lag_seconds"] == [{}]
    assert kinds["runspan_export_runs"] == "counter"
    assert kinds["runspan_sync_lag_seconds"] == "gauge"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_a_port_in_use_is_a_config_error(registry: MetricsRegistry) -> None:
    """The error for a port in use names the address."""
    with serve_metrics(registry, "127.0.0.1", 0) as url:
        port = httpx.URL(url).port or 0
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"), serve_metrics(registry, "127.0.0.1", port):
            pass


def test_promtool_accepts_the_text(registry: MetricsRegistry) -> None:
    """Prometheus' linter accepts names, types and help texts."""
    promtool = require_program("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=exposition(registry), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# OpenTelemetry.


def test_a_meter_provider_has_every_metric(registry: MetricsRegistry) -> None:
    """Name, unit, description, kind and value are those of the table; unreported metrics have no data point."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    register_instruments(registry, provider)
    register_instruments(
        MetricsRegistry(lambda: NOW), MeterProvider([silent := InMemoryMetricReader()], shutdown_on_exit=False)
    )
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "runspan"
    metrics = {item.name: item for item in scope.metrics}
    assert metrics.keys() == {metric.name for metric in INSTRUMENTS}
    for number, metric in enumerate(INSTRUMENTS, 1):
        item = metrics[metric.name]
        (point,) = item.data.data_points
        assert (item.unit, item.description, point.value) == (metric.unit, metric.description, number)  # type: ignore[union-attr]
        is_counter = metric.kind is InstrumentKind.COUNTER
        assert getattr(item.data, "is_monotonic", False) == is_counter
        assert point.attributes == ({"runspan.started": registry.started} if is_counter else {})
    empty = silent.get_metrics_data()
    assert empty is None or not any(scope.metrics for item in empty.resource_metrics for scope in item.scope_metrics)
    provider.shutdown()


@contextmanager
def metrics_receiver() -> Iterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """Run a receiver of OTLP metrics over HTTP, and yield its URL and the received requests."""
    received: list[ExportMetricsServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportMetricsServiceRequest.FromString(body))
            response = ExportMetricsServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(response)))
            self.end_headers()
            self.wfile.write(response)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/metrics", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_final_values_are_pushed(registry: MetricsRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are pushed to their endpoint over OTLP, including the final values."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with metrics_receiver() as (url, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", url)
        with push_metrics(registry, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url}, service_name="exporter") as pushes:
            assert pushes
            registry.register(lambda: {EXPORTED: 1000})
    (resource,) = received[-1].resource_metrics
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


def test_a_collector_exports_the_same_prometheus_names(
    registry: MetricsRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus finds the same metrics, whether it scrapes runspan or a Collector that runspan pushes to."""
    otlp, scraping = free_ports(2)
    (tmp_path / "config.yaml").write_text(COLLECTOR % (otlp, scraping))
    collector = Program([require_program("otelcol"), "--config", "config.yaml"], tmp_path)
    try:
        collector.wait_until(lambda: answers(f"http://127.0.0.1:{scraping}/metrics"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{otlp}/v1/metrics")
        with push_metrics(registry, os.environ) as pushes:
            assert pushes
        metrics = scraped(httpx.get(f"http://127.0.0.1:{scraping}/metrics", trust_env=False).content)
    finally:
        collector.stop()
    assert {name: value for name, value in metrics.items() if name.startswith("runspan_")} == scraped(
        exposition(registry)
    )


def test_metrics_are_pushed_only_if_enabled(registry: MetricsRegistry) -> None:
    """An endpoint for traces does not enable metrics, `none` disables them, and an unknown exporter is an error."""
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    metrics = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"}
    assert not is_enabled({})
    assert not is_enabled(traces)
    assert is_enabled(metrics)
    assert is_enabled({**traces, "OTEL_METRICS_EXPORTER": "otlp"})
    assert not is_enabled({**metrics, "OTEL_METRICS_EXPORTER": "none"})
    with pytest.raises(ConfigError, match="OTEL_METRICS_EXPORTER"):
        is_enabled({"OTEL_METRICS_EXPORTER": "prometheus"})
    with push_metrics(registry, traces) as pushes:
        assert not pushes
    with (
        pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL"),
        push_metrics(registry, {**metrics, "OTEL_EXPORTER_OTLP_PROTOCOL": "udp"}),
    ):
        pass


# The metrics of components.


def test_the_server_has_metrics_of_unfinished_runs(tmp_path: Path, clock: Clock) -> None:
    """The server counts the unfinished runs of all tenants and has the age of the oldest one.

    A run without any time is as old as its observation.
    """
    with SqliteStore(tmp_path, clock=clock) as store, serving_app(create_app(store, store, clock=clock)) as client:

        def numbers() -> tuple[float, float]:
            metrics = scraped(client.get("/metrics").content)
            return metrics[UNFINISHED.prometheus_name], metrics[OLDEST_UNFINISHED.prometheus_name]

        assert numbers() == (0, 0)
        hour = {"status": "running", "startedAt": "2025-11-24T15:00:00.000Z", "completedAt": None}
        for tenant, run_id, members in (
            ("", "ended", {}),
            ("", "running", hour),
            ("acme", "waiting", {**hour, "status": "suspended", "startedAt": "2025-11-24T14:00:00.000Z"}),
            ("zeta", "queued", {"status": "pending", "startedAt": None, "completedAt": None, "steps": []}),
        ):
            store.put(Run.from_dict(document(run_id, **members)), tenant=tenant, observed_at=NOW)
        assert numbers() == (3, 2 * 3600)
        store.put(Run.from_dict(document("waiting")), tenant="acme", observed_at=NOW)
        assert numbers() == (2, 3600)


def test_the_counts_of_an_export_report_are_metrics() -> None:
    """Each count of a report is the value of one metric."""
    numbered = replace(
        ExportReport(), runs_accepted=1, runs_rejected=2, runs_pending=4, documents_refused=8, requests=16, retries=32
    )
    assert sorted(value or 0 for value in export_samples(numbered).values()) == [1, 2, 4, 8, 16, 32]


def test_counters_continue_across_replaced_components(clock: Clock) -> None:
    """Counters never decrease when a component is replaced, and gauges are those of the current component."""
    registry = MetricsRegistry(clock)
    remove = registry.register(lambda: {EXPORTED: 3, QUEUE: 7, LAG: NOW})
    assert registry.collect() == {EXPORTED: 3, QUEUE: 7, LAG: 0}
    remove()
    assert registry.collect() == {EXPORTED: 3}
    remove = registry.register(lambda: {EXPORTED: 2, RETRIED: 1, QUEUE: 1})
    assert registry.collect() == {EXPORTED: 5, RETRIED: 1, QUEUE: 1}
    remove()
    registry.register(lambda: {LAG: None})
    assert registry.collect() == {EXPORTED: 5, RETRIED: 1, LAG: 0}


def test_counters_never_decrease_while_components_are_replaced(clock: Clock) -> None:
    """Eight threads replace their components while another thread collects."""
    registry = MetricsRegistry(clock)

    def work() -> None:
        for _ in range(500):
            registry.register(lambda: {EXPORTED: 1})()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = [registry.collect().get(EXPORTED, 0) for _ in range(100)]
    for thread in threads:
        thread.join()
    assert registry.collect() == {EXPORTED: 4000}
    assert seen == sorted(seen)
