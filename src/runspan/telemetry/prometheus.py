"""Health as Prometheus reads it: a collector for any registry, the text, and a small server for ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from runspan.errors import SettingError
from runspan.telemetry.instruments import InstrumentKind
from runspan.telemetry.registry import MetricsRegistry


class RegistryCollector(Collector):
    """Reads the health when somebody scrapes."""

    def __init__(self, health: MetricsRegistry) -> None:
        self._health = health

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Nothing in advance: what is told depends on what was reported."""
        return iter(())

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric, value in self._health.collect().items():
            family = CounterMetricFamily if metric.kind is InstrumentKind.COUNTER else GaugeMetricFamily
            yield family(metric.prometheus_name, metric.description, value=value)


def exposition(health: MetricsRegistry) -> bytes:
    """All of it in Prometheus' text format."""
    return generate_latest(_registry(health))


@contextmanager
def serve_metrics(health: MetricsRegistry, host: str, port: int) -> Iterator[str]:
    """Answers ``/metrics`` on this address in a thread of its own; yields the URL. port 0 takes a free one."""
    try:
        server, thread = start_http_server(port, host, _registry(health))
    except (OSError, OverflowError, UnicodeError) as error:  # the last for a host that no name server can be asked for
        where = f"{host}:{port}"
        raise SettingError(
            "cannot listen for metrics", where=where, got=str(error), hint="choose another address or port"
        ) from error
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(health: MetricsRegistry) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RegistryCollector(health))
    return registry
