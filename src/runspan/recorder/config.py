"""The configuration of a recorder: when it exports, where to, and as which resource. The environment is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runspan.delivery import ExporterConfig, exporter_config
from runspan.errors import ConfigError
from runspan.otlp.env import read_attributes, validate_text
from runspan.otlp.protobuf_writer import Resource

API_KEY: Final = "RUNSPAN_API_KEY"
"""The variable with the API key of a runspan server; ``runspan export`` reads it too."""


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """When a recorder exports, and how much it holds while the receiver accepts nothing. Times are seconds."""

    snapshot_delay: float = 0.1
    """From a change to its snapshot, and the least time between two snapshots of a run. A run that is older than 50
    times this delay is sent at intervals of a fiftieth of its age, up to ``heartbeat_interval``; a change of its status
    does not wait for that."""
    heartbeat_interval: float = 30.0
    """Between two snapshots of a run that does not change."""
    retry_initial_delay: float = 0.5
    """The first delay of the exponential backoff."""
    retry_max_delay: float = 30.0
    """The longest delay of the exponential backoff."""
    max_pending_bytes: int = 64 << 20
    """Memory for ended runs that the receiver lacks. The few that are being sent are not included."""
    max_foreign_spans: int = 8192
    """How many spans of other instrumentation wait to be sent."""


def exporter_config_from(
    environ: Mapping[str, str] | None,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    timeout: float | None,
) -> ExporterConfig:
    """Return where to send to; arguments take precedence over variables.

    ConfigError without endpoint and environment: a default would hide that the environment was not passed in.
    """
    if endpoint is None and environ is None:
        raise ConfigError(
            where="Recorder",
            expected="endpoint=, environ= or provider=",
            got="none of them",
            hint="Recorder(environ=os.environ) honours OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_ variables",
        )
    env = environ or {}
    key = env.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(where=API_KEY, expected="one API key in printable ASCII", got="other characters")
    return exporter_config(env, api_key=key, endpoint=endpoint, protocol=protocol, headers=headers, timeout=timeout)


def resource_of(
    environ: Mapping[str, str] | None, service_name: str | None, attributes: Mapping[str, str] | None
) -> Resource:
    """Return the resource; arguments take precedence over ``OTEL_SERVICE_NAME``, and that over
    ``OTEL_RESOURCE_ATTRIBUTES``.

    ConfigError when a name or a value is not text that UTF-8 can encode.
    """
    env = environ or {}
    merged = read_attributes(env.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    for key, value in (attributes or {}).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ConfigError(where="resource_attributes", expected="text", got=f"{key!r}: {value!r}")
        merged[validate_text("resource_attributes", key)] = validate_text("resource_attributes", value)
    name_attribute = merged.pop("service.name", "")
    name = validate_text("service_name", service_name or "")
    name = name or validate_text("OTEL_SERVICE_NAME", env.get("OTEL_SERVICE_NAME", "").strip())
    return Resource(name or name_attribute or "runspan", merged)
