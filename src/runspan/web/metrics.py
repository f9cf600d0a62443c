"""The metrics of ``/metrics``: requests, spans and runs, and the statistics of the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from runspan.backends.sqlite import SqliteStore
from runspan.errors import RunspanError
from runspan.model.timestamps import SECOND
from runspan.telemetry import MetricsRegistry, Samples
from runspan.telemetry.prometheus import RegistryCollector
from runspan.telemetry.registry import OLDEST_UNFINISHED, STUCK, UNFINISHED

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(
        self, backend: object, clock: Callable[[], int] = time.time_ns, *, stuck_after: int = 900 * SECOND
    ) -> None:
        """Include the backend's own metrics if it is a ``SqliteStore``, which knows cheaply what it contains.

        ``clock`` returns nanoseconds since 1970. ``stuck_after`` is the number of nanoseconds without an observation
        after which a run counts as stuck.
        """
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "runspan_http_requests_total",
            "HTTP requests answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "runspan_http_request_duration_seconds",
            "Seconds until the response started.",
            ("route", "method"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.spans_received = Counter(
            "runspan_spans_received_total", "Spans in requests to /v1/traces.", registry=self.registry
        )
        self.spans_rejected = Counter(
            "runspan_spans_rejected_total",
            "Spans in requests to /v1/traces that were rejected.",
            registry=self.registry,
        )
        self.runs_stored = Counter(
            "runspan_runs_stored_total",
            "New or changed documents in POST /api/v1/runs, and traces in requests to /v1/traces.",
            registry=self.registry,
        )
        if isinstance(backend, SqliteStore):
            run_metrics = MetricsRegistry(clock)
            run_metrics.register(lambda: _run_samples(backend, clock() - stuck_after))
            self.registry.register(RegistryCollector(run_metrics))
            self.registry.register(_StoreCollector(backend))
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def observe_request(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count a request by its route, which is the URL rule: run ids must not become time series."""
        key = (route, method if method in _METHODS else "other", status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (self._requests.labels(*key), self._seconds.labels(*key[:2]))
        requests, duration = children
        requests.inc()
        duration.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def _run_samples(store: SqliteStore, stuck_before: int) -> Samples:
    try:
        unfinished = store.unfinished()
        return {UNFINISHED: unfinished.runs, OLDEST_UNFINISHED: unfinished.oldest, STUCK: store.stuck(stuck_before)}
    except RunspanError:
        return {}


class _StoreCollector(Collector):
    """Reads the statistics of the store on every scrape. A store that fails omits its series."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            stats = self._store.stats()
        except RunspanError:
            return
        for item in fields(stats):
            description = f"Content of the store: {item.name.replace('_', ' ')}."
            yield GaugeMetricFamily(f"runspan_store_{item.name}", description, value=getattr(stats, item.name))
