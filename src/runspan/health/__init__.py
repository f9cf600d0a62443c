"""What the long-running parts of runspan tell about themselves: one table of metrics, one object that they report to.

Its faces are ``runspan.health.prometheus`` and ``runspan.health.otel``, imported by whoever shows one: an engine that
only records runs loads neither.
"""

from __future__ import annotations

from runspan.health.state import Delivered, Health, Numbers, Succession, delivered
from runspan.health.table import METRICS, Kind, Metric

__all__ = ["METRICS", "Delivered", "Health", "Kind", "Metric", "Numbers", "Succession", "delivered"]
