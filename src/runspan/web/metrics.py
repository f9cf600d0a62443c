"""The metrics of ``/metrics``: requests, spans and runs, and the statistics of the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runspan.backends.sqlite import SqliteStore
from runspan.errors import RunspanError
from runspan.model.timestamps import SECOND
from runspan.telemetry import MetricsRegistry, Samples
from runspan.telemetry.prometheus import RegistryCollector
from runspan.telemetry.registry import OLDEST_UNFINISHED, UNFINISHED
from runspan.web.windows import SharedWindows, Windows

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase
from runspan.web.usage import UsageStore

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})
_WORKFLOW = ("runspan_workflow_id",)
_TENANT = ("runspan_tenant",)
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(
        self,
        backend: object,
        windows: Windows | None = None,
        clock: Callable[[], int] = time.time_ns,
        *,
        stuck_after: int = 900 * SECOND,
        stuck_max_age: int = 7 * 86_400 * SECOND,
        usage: UsageStore | None = None,
    ) -> None:
        """Include the backend's own metrics if it is a ``SqliteStore``, which knows cheaply what it contains.

        Include whether the database of ``windows`` answers if it is shared with other servers.

        ``clock`` returns nanoseconds since 1970. A run counts as stuck when its heartbeat is overdue by
        ``stuck_after`` nanoseconds, unless it was older than ``stuck_max_age`` when it was last observed. A suspended
        run has an age until it is so old. ``usage``: includes what each tenant has sent today.
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
            run_metrics.register(lambda: _run_samples(backend))
            self.registry.register(RegistryCollector(run_metrics))
            self.registry.register(_WaitingCollector(backend, clock, stuck_after, stuck_max_age))
            self.registry.register(_StoreCollector(backend))
            self.registry.register(_IndexCollector(backend, clock))
        if isinstance(windows, SharedWindows):
            self.registry.register(_StateCollector(windows.database))
        if usage is not None:
            self.registry.register(_UsageCollector(usage))
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


def _run_samples(store: SqliteStore) -> Samples:
    try:
        unfinished = store.unfinished()
        return {UNFINISHED: unfinished.runs, OLDEST_UNFINISHED: unfinished.oldest}
    except RunspanError:
        return {}


class _WaitingCollector(Collector):
    """Finds the stuck and the suspended runs of each workflow on every scrape. A workflow without one has no series."""

    def __init__(self, store: SqliteStore, clock: Callable[[], int], after: int, max_age: int) -> None:
        self._store = store
        self._clock = clock
        self._after = after
        self._max_age = max_age

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._clock()
        try:
            found = self._store.stuck(now - self._after, self._max_age)
            suspended = self._store.suspended(now - self._max_age)
        except RunspanError:
            return
        runs = GaugeMetricFamily(
            "runspan_runs_stuck",
            "Pending and running runs whose next heartbeat is overdue by more than `--stuck-after`.",
            labels=_WORKFLOW,
        )
        age = GaugeMetricFamily(
            "runspan_runs_stuck_age_seconds",
            "Time since the last observation of the stuck run that was observed the longest ago.",
            labels=_WORKFLOW,
        )
        for item in found:
            runs.add_metric([item.workflow_id], item.runs)
            age.add_metric([item.workflow_id], (now - item.observed_at) / SECOND)
        waiting = GaugeMetricFamily(
            "runspan_runs_suspended_age_seconds",
            "Time since the start of the suspended run that started the longest ago.",
            labels=_WORKFLOW,
        )
        for workflow_id, start in suspended.items():
            waiting.add_metric([workflow_id], (now - start) / SECOND)
        yield runs
        yield age
        yield waiting


class _UsageCollector(Collector):
    """What the tenants have sent today, at most ``MAX_TENANTS`` of them by name."""

    def __init__(self, usage: UsageStore) -> None:
        self._usage = usage

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            found = self._usage.today()
        except RunspanError:
            return
        runs = GaugeMetricFamily(
            "runspan_tenant_runs_today",
            "Runs of which the tenant has sent something since midnight in UTC.",
            labels=_TENANT,
        )
        size = GaugeMetricFamily(
            "runspan_tenant_bytes_today",
            "Bytes of request bodies that the tenant has sent since midnight in UTC.",
            labels=_TENANT,
        )
        for item in found:
            runs.add_metric([item.tenant], item.runs)
            size.add_metric([item.tenant], item.bytes)
        yield runs
        yield size


class _StoreCollector(Collector):
    """Reads the statistics of the store on every scrape. A store that fails omits those of its content."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "runspan_store_damaged_reads",
            "Runs, list items and spans that were refused because what is stored of them is damaged.",
            value=self._store.damaged_reads,
        )
        try:
            stats = self._store.stats()
        except RunspanError:
            return
        for item in fields(stats):
            description = f"Content of the store: {item.name.replace('_', ' ')}."
            yield GaugeMetricFamily(f"runspan_store_{item.name}", description, value=getattr(stats, item.name))


class _IndexCollector(Collector):
    """Reads what the index of the store lacks on every scrape. A store without one has no series."""

    def __init__(self, store: SqliteStore, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        try:
            stats = self._store.index_stats()
        except RunspanError:
            return
        if stats is None:
            return
        age = 0 if stats.oldest is None else max(0, self._clock() - stats.oldest)
        for name, description, value in (
            ("bytes", "Size of the index of the store.", stats.bytes),
            ("lag_runs", "Runs that have changed or are new since the index read them, about.", stats.lag),
            ("lag_seconds", "Time since the first of these runs was stored.", age / SECOND),
        ):
            yield GaugeMetricFamily(f"runspan_index_{name}", description, value=value)


class _StateCollector(Collector):
    """Asks the database that servers share on every scrape."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "runspan_state_reachable",
            "Whether the database of `--state` answers; without it every request that needs a key gets 503.",
            value=self._database.is_reachable(),
        )
        yield CounterMetricFamily(
            "runspan_state_failures",
            "Lookups of keys and sessions, and counts of rate limits, that failed because it did not answer.",
            value=self._database.failures,
        )
