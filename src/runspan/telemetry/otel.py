"""Export of the metrics with OpenTelemetry, through a given MeterProvider or to an OTLP receiver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from runspan._version import __version__
from runspan.errors import ConfigError
from runspan.telemetry.registry import INSTRUMENTS, STARTED, Instrument, InstrumentKind, MetricsRegistry

SCOPE = "runspan"
_ENDPOINT = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
_EXPORTER = "OTEL_METRICS_EXPORTER"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_MAX_INTERVAL_MILLIS = 86_400_000
_SHUTDOWN_TIMEOUT_MILLIS = 5000


def register_instruments(registry: MetricsRegistry, provider: MeterProvider) -> None:
    """Create an observable instrument for every metric. A metric that was not reported has no data point."""
    meter = provider.get_meter(SCOPE, __version__)

    def observe(instrument: Instrument, options: CallbackOptions) -> list[Observation]:
        value = registry.collect().get(instrument)
        attributes = {STARTED: registry.started} if instrument.kind is InstrumentKind.COUNTER else None
        return [] if value is None else [Observation(value, attributes)]

    for each in INSTRUMENTS:
        is_counter = each.kind is InstrumentKind.COUNTER
        create: Any = meter.create_observable_counter if is_counter else meter.create_observable_gauge
        create(each.name, callbacks=[partial(observe, each)], unit=each.unit, description=each.description)


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Return whether the environment enables OTLP metrics, by their endpoint or by ``OTEL_METRICS_EXPORTER=otlp``.

    ``OTEL_EXPORTER_OTLP_ENDPOINT`` alone does not: many receivers of traces, runspan's among them, accept no metrics.
    """
    exporter = environment.get(_EXPORTER, "").strip()
    if exporter not in {"", "none", "otlp"}:
        raise ConfigError(where=_EXPORTER, expected="otlp or none", got=repr(exporter))
    return exporter == "otlp" or (not exporter and bool(environment.get(_ENDPOINT, "").strip()))


@contextmanager
def push_metrics(
    registry: MetricsRegistry, environment: Mapping[str, str], *, service_name: str = "runspan"
) -> Iterator[bool]:
    """Push the metrics periodically until the block ends, and once more at its end, if ``is_enabled``.

    Yields whether metrics are pushed. The SDK's exporter reads endpoint, headers, protocol, interval and certificates
    from the ``OTEL_…`` variables of the process.
    """
    if not is_enabled(environment):
        yield False
        return
    resource = Resource.create({"service.name": service_name})
    reader = PeriodicExportingMetricReader(_exporter(environment), _interval(environment))
    provider = SdkMeterProvider([reader], resource=resource, shutdown_on_exit=False)
    register_instruments(registry, provider)
    try:
        yield True
    finally:
        provider.shutdown(timeout_millis=_SHUTDOWN_TIMEOUT_MILLIS)


def _interval(environment: Mapping[str, str]) -> float | None:
    """Return milliseconds, or None to let the SDK read the variable: it warns if the value is not a number."""
    text = environment.get(_INTERVAL, "").strip()
    try:
        millis = float(text)
    except ValueError:
        return None
    if not 0 < millis <= _MAX_INTERVAL_MILLIS:
        raise ConfigError(where=_INTERVAL, expected=f"milliseconds from 1 to {_MAX_INTERVAL_MILLIS}", got=repr(text))
    return millis


def _exporter(environment: Mapping[str, str]) -> MetricExporter:
    """Return the SDK's exporter for the protocol. Only that one is imported, since importing takes noticeable time."""
    name = next((name for name in _PROTOCOLS if environment.get(name, "").strip()), "")
    protocol = environment.get(name, "http/protobuf").strip()
    kind = {"grpc": "grpc", "http/protobuf": "http"}.get(protocol)
    if kind is None:
        raise ConfigError(where=name, expected="grpc or http/protobuf", got=repr(protocol))
    module = import_module(f"opentelemetry.exporter.otlp.proto.{kind}.metric_exporter")
    exporter: MetricExporter = module.OTLPMetricExporter()
    return exporter
