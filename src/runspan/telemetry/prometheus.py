"""Export of the metrics to Prometheus, as a collector, as text, and by a small server for ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from runspan.errors import ConfigError
from runspan.telemetry.registry import STARTED, InstrumentKind, MetricsRegistry

_STARTED: Final = STARTED.replace(".", "_")


class RegistryCollector(Collector):
    """A Prometheus collector that reads a ``MetricsRegistry`` on each scrape."""

    def __init__(self, registry: MetricsRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for instrument, value in self._registry.collect().items():
            if instrument.kind is InstrumentKind.COUNTER:
                counter = CounterMetricFamily(instrument.prometheus_name, instrument.description, labels=[_STARTED])
                counter.add_metric([self._registry.started], value)
                yield counter
            else:
                yield GaugeMetricFamily(instrument.prometheus_name, instrument.description, value=value)


@contextmanager
def serve_metrics(registry: MetricsRegistry, host: str, port: int) -> Iterator[str]:
    """Serve ``/metrics`` in a thread until the block ends, and yield the URL. Port 0 selects a free port."""
    collectors = CollectorRegistry()
    collectors.register(RegistryCollector(registry))
    try:
        server, thread = start_http_server(port, host, collectors)
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: an invalid host name
        where = f"{host}:{port}"
        raise ConfigError(
            "cannot listen for metrics", where=where, got=str(error), hint="choose another address or port"
        ) from error
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
