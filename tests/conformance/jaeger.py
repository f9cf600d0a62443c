"""Jaeger in the suite: without a batch processor an accepted run is stored, and can be read at once."""

from __future__ import annotations

from conformance.sending import ByOtlp, delivery_to
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import remote_config
from support.servers.jaeger import Jaeger


def jaeger_by_otlp(server: Jaeger) -> ByOtlp:
    """Return the harness of a Jaeger."""
    return ByOtlp(JaegerReader(remote_config(f"jaeger+{server.url}", {})), delivery_to(server.otlp))
