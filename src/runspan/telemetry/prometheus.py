"""Health as Prometheus reads it: a collector for any registry, the text, and a small server for ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from runspan.errors import SettingError
from runspan.telemetry.instruments import Kind
from runspan.telemetry.registry import Health


class HealthCollector(Collector):
    """Reads the health when somebody scrapes."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Nothing in advance: what is told depends on what was reported."""
        return iter(())

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric, value in self._health.read().items():
            family = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            yield family(metric.prometheus_name, metric.about, value=value)


def text(health: Health) -> bytes:
    """All of it in Prometheus' text format."""
    return generate_latest(_registry(health))


@contextmanager
def serving(health: Health, host: str, port: int) -> Iterator[str]:
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


def _registry(health: Health) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(HealthCollector(health))
    return registry
