"""Health as OpenTelemetry metrics: on a given MeterProvider, or on one of our own that sends to an OTLP receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from runspan._version import __version__
from runspan.errors import SettingError
from runspan.telemetry.instruments import INSTRUMENTS, Instrument, InstrumentKind
from runspan.telemetry.registry import MetricsRegistry

SCOPE = "runspan"
_ENDPOINT = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
_EXPORTER = "OTEL_METRICS_EXPORTER"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_LONGEST_MILLIS = 86_400_000
_END_MILLIS = 5000


def register_instruments(health: MetricsRegistry, provider: MeterProvider) -> None:
    """Makes an observable instrument of every metric of the table. What was not reported yet gives no data point."""
    meter = provider.get_meter(SCOPE, __version__)
    for metric in INSTRUMENTS:
        create: Any = meter.create_observable_counter
        if metric.kind is not InstrumentKind.COUNTER:
            create = meter.create_observable_gauge
        create(metric.name, callbacks=[_callback(health, metric)], unit=metric.unit, description=metric.description)


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Whether somebody asked for metrics over OTLP: by their own endpoint, or by ``OTEL_METRICS_EXPORTER=otlp``.

    ``OTEL_EXPORTER_OTLP_ENDPOINT`` alone does not: it is where the traces go, and receivers of traces that take no
    metrics are common, ours among them.
    """
    chosen = environment.get(_EXPORTER, "").strip()
    if chosen not in {"", "none", "otlp"}:
        raise SettingError(where=_EXPORTER, expected="otlp or none", got=repr(chosen))
    return chosen == "otlp" or (not chosen and bool(environment.get(_ENDPOINT, "").strip()))


@contextmanager
def push_metrics(
    health: MetricsRegistry, environment: Mapping[str, str], *, service_name: str = "runspan"
) -> Iterator[bool]:
    """Sends the metrics, if ``wanted``, until the block ends, and once more then; yields whether it does.

    The exporter is the SDK's and takes endpoint, headers, protocol, interval and certificates from the ``OTEL_…``
    variables of the process.
    """
    if not is_enabled(environment):
        yield False
        return
    resource = Resource.create({"service.name": service_name})
    reader = PeriodicExportingMetricReader(_exporter(environment), _interval(environment))
    provider = SdkMeterProvider([reader], resource=resource, shutdown_on_exit=False)
    register_instruments(health, provider)
    try:
        yield True
    finally:
        provider.shutdown(timeout_millis=_END_MILLIS)


def _interval(environment: Mapping[str, str]) -> float | None:
    """Milliseconds; None where the SDK's own reading of the variable will do: it warns of what is no number."""
    text = environment.get(_INTERVAL, "").strip()
    try:
        millis = float(text)
    except ValueError:
        return None
    if not 0 < millis <= _LONGEST_MILLIS:
        raise SettingError(where=_INTERVAL, expected=f"milliseconds from 1 to {_LONGEST_MILLIS}", got=repr(text))
    return millis


def _exporter(environment: Mapping[str, str]) -> MetricExporter:
    """One of the SDK's two. Only that one is loaded: each takes a noticeable part of a command's start."""
    name = next((name for name in _PROTOCOLS if environment.get(name, "").strip()), "")
    protocol = environment.get(name, "http/protobuf").strip()
    kind = {"grpc": "grpc", "http/protobuf": "http"}.get(protocol)
    if kind is None:
        raise SettingError(where=name, expected="grpc or http/protobuf", got=repr(protocol))
    module = import_module(f"opentelemetry.exporter.otlp.proto.{kind}.metric_exporter")
    exporter: MetricExporter = module.OTLPMetricExporter()
    return exporter


def _callback(health: MetricsRegistry, metric: Instrument) -> Callable[[CallbackOptions], list[Observation]]:
    def observe(options: CallbackOptions) -> list[Observation]:
        value = health.collect().get(metric)
        return [] if value is None else [Observation(value)]

    return observe
