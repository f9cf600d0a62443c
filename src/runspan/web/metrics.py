"""What ``/metrics`` tells: requests, spans and runs, and the store's own numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from runspan.errors import RunspanError
from runspan.model.timestamps import SECOND
from runspan.telemetry import MetricsRegistry, Samples
from runspan.telemetry.instruments import OLDEST_UNFINISHED, STUCK, UNFINISHED
from runspan.telemetry.prometheus import RegistryCollector

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@runtime_checkable
class SupportsStats(Protocol):
    """A backend that counts what it holds: a dataclass of numbers."""

    def stats(self) -> Any: ...


class Unfinished(Protocol):
    """runs: how many have not ended. oldest: the earliest start among them, nanoseconds since 1970."""

    @property
    def runs(self) -> int: ...
    @property
    def oldest(self) -> int | None: ...


@runtime_checkable
class SupportsUnfinished(Protocol):
    """A backend that can tell cheaply which runs have not ended."""

    def unfinished(self) -> Unfinished: ...


@runtime_checkable
class SupportsStuck(Protocol):
    """A backend that can tell cheaply how many runs nobody saw go on; see ``RunQuery.stuck_before``."""

    def stuck(self, before: int) -> int: ...


class Metrics:
    """The metrics of one application, in a registry of its own.

    clock: nanoseconds since 1970. health: for parts of the process that report to it; the store's runs are told there.
    stuck_after: nanoseconds without an observation after which a run counts as stuck.
    """

    def __init__(
        self, store: object, clock: Callable[[], int] = time.time_ns, *, stuck_after: int = 900 * SECOND
    ) -> None:
        self.health = MetricsRegistry(clock)
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "runspan_http_requests_total", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "runspan_http_request_duration_seconds",
            "Time to the answer's first byte.",
            ("route", "method"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.spans_received = Counter(
            "runspan_spans_received_total", "Spans in requests to /v1/traces.", registry=self.registry
        )
        self.spans_rejected = Counter(
            "runspan_spans_rejected_total", "Spans of these that were not taken.", registry=self.registry
        )
        self.runs_stored = Counter(
            "runspan_runs_stored_total",
            "Documents that came new or changed to POST /api/v1/runs, and runs touched by a request to /v1/traces.",
            registry=self.registry,
        )
        if isinstance(store, SupportsStats):
            self.registry.register(_StoreCollector(store))
        if isinstance(store, SupportsUnfinished):
            self.health.register(lambda: _unfinished(store))
        if isinstance(store, SupportsStuck):
            self.health.register(lambda: _stuck(store, clock() - stuck_after))
        self.registry.register(RegistryCollector(self.health))
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, method: str, status: str, seconds: float) -> None:
        """Counts one request. route: the rule, never the path, so that ids make no series."""
        key = (route, method if method in _METHODS else "other", status)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = (self._requests.labels(*key), self._seconds.labels(*key[:2]))
        requests, duration = found
        requests.inc()
        duration.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


def _unfinished(store: SupportsUnfinished) -> Samples:
    """A store that cannot answer leaves them out."""
    try:
        found = store.unfinished()
    except RunspanError:
        return {}
    return {UNFINISHED: found.runs, OLDEST_UNFINISHED: found.oldest}


def _stuck(store: SupportsStuck, before: int) -> Samples:
    """The same."""
    try:
        return {STUCK: store.stuck(before)}
    except RunspanError:
        return {}


class _StoreCollector(Collector):
    """Asks the store when somebody scrapes. A store that cannot answer leaves its series out."""

    def __init__(self, store: SupportsStats) -> None:
        self._store = store

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            stats = self._store.stats()
        except RunspanError:
            return
        for item in fields(stats):
            about = f"What the store holds: {item.name.replace('_', ' ')}."
            yield GaugeMetricFamily(f"runspan_store_{item.name}", about, value=getattr(stats, item.name))
