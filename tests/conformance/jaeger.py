"""Jaeger in the suite: without a batch processor a success means stored, and what is stored can be read."""

from __future__ import annotations

from conformance.sending import ByOtlp, delivery_to
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import remote_config
from support.servers.jaeger import Jaeger


def jaeger_by_otlp(server: Jaeger) -> ByOtlp:
    """A Jaeger of a test run."""
    return ByOtlp(JaegerReader(remote_config(f"jaeger+{server.url}", {})), delivery_to(server.otlp))
