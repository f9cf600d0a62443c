"""What the long-running parts of runspan tell about themselves: one table of metrics, one object that they report to.

Its faces are ``telemetry.prometheus`` and ``telemetry.otel``, imported by whoever shows one: an engine that
only records runs loads neither.
"""

from __future__ import annotations

from runspan.telemetry.instruments import INSTRUMENTS, Instrument, InstrumentKind
from runspan.telemetry.registry import CumulativeSource, ExportCounts, MetricsRegistry, Samples, export_samples

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
