"""Grafana Tempo behind the contract of ``runspan.contracts``."""

from __future__ import annotations

from runspan.backends.tempo.reader import TempoReader

__all__ = ["TempoReader"]
