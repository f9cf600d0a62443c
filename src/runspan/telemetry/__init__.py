"""Metrics of runspan's long-running components: the table of instruments and the registry of their values.

``telemetry.prometheus`` and ``telemetry.otel`` export the metrics. They are imported only where they are used, so that
an engine that only records runs loads neither.
"""

from __future__ import annotations

from runspan.telemetry.registry import (
    INSTRUMENTS,
    CumulativeSource,
    ExportCounts,
    Instrument,
    InstrumentKind,
    MetricsRegistry,
    Samples,
    export_samples,
)

__all__ = [
    "INSTRUMENTS",
    "CumulativeSource",
    "ExportCounts",
    "Instrument",
    "InstrumentKind",
    "MetricsRegistry",
    "Samples",
    "export_samples",
]
