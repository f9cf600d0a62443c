"""What the long-running parts of runspan tell about themselves: one table of metrics, one object that they report to.

Its faces are ``telemetry.prometheus`` and ``telemetry.otel``, imported by whoever shows one: an engine that
only records runs loads neither.
"""

from __future__ import annotations

from runspan.telemetry.instruments import METRICS, Kind, Metric
from runspan.telemetry.registry import Delivered, Health, Numbers, Succession, delivered

__all__ = ["METRICS", "Delivered", "Health", "Kind", "Metric", "Numbers", "Succession", "delivered"]
