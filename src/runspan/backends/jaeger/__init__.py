"""Jaeger as a backend: runs read through its query API."""

from runspan.backends.jaeger.reader import JaegerReader

__all__ = ["JaegerReader"]
