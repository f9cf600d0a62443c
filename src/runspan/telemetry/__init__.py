"""Metrics of runspan's long-running components: the table of instruments and the registry of their values.

``telemetry.prometheus`` and ``telemetry.otel`` export the metrics. They are imported only where they are used, so that
an engine that only records runs loads neither.
"""

from __future__ import annotations

from runspan.telemetry.registry import (
    INSTRUMENTS,
    Instrument,
    InstrumentKind,
    MetricsRegistry,
    Samples,
)

__all__ = [
    "INSTRUMENTS",
    "Instrument",
    "InstrumentKind",
    "MetricsRegistry",
    "Samples",
]
