"""Where a recorder sends to and as whom, from arguments and OpenTelemetry's variables; the environment is passed in.

``Pace``: when a recorder sends, and how much it holds back meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runspan.delivery import ExporterConfig, exporter_config, with_api_key
from runspan.errors import SettingError
from runspan.otlp.env import read_attributes, validate_text
from runspan.otlp.protobuf_writer import Resource


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """When to send, in seconds, and how much to hold.

    settle: from a change to its snapshot, and between two snapshots of a run at least; of a run that is older than
    50 times that, a fiftieth of its age, but a change of its status comes through and none waits longer than a
    heartbeat. heartbeat: between snapshots of a run that does not change. retry_first, retry_longest: bounds of the
    backoff while the receiver takes nothing. max_held_bytes: of ended runs that it lacks, beside those that are just
    being sent, a few of them at a time. max_foreign: spans of other instrumentation that it lacks.
    """

    settle: float = 0.1
    heartbeat: float = 30.0
    retry_first: float = 0.5
    retry_longest: float = 30.0
    max_held_bytes: int = 64 << 20
    max_foreign: int = 8192


API_KEY: Final = "RUNSPAN_API_KEY"
"""The variable with the API key of a runspan server, as ``runspan export`` has it too."""


def exporter_config_from(
    environ: Mapping[str, str] | None,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    timeout: float | None,
) -> ExporterConfig:
    """SettingError when nothing says where to send to: a default would hide that the environment was not passed in."""
    if endpoint is None and environ is None:
        raise SettingError(
            where="Recorder",
            expected="endpoint=, environ= or provider=",
            got="none of them",
            hint="Recorder(environ=os.environ) honours OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_ variables",
        )
    env = environ or {}
    key = env.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingError(where=API_KEY, expected="one API key in printable ASCII", got="other characters")
    if key and headers is None:
        env = with_api_key(env, key)
    return exporter_config(env, endpoint=endpoint, protocol=protocol, headers=headers, timeout=timeout)


def resource_of(
    environ: Mapping[str, str] | None, service_name: str | None, attributes: Mapping[str, str] | None
) -> Resource:
    """Arguments go before ``OTEL_SERVICE_NAME``, and that before ``OTEL_RESOURCE_ATTRIBUTES``. SettingError when one is
    no text that UTF-8 can carry."""
    env = environ or {}
    found = read_attributes(env.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    for key, value in (attributes or {}).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise SettingError(where="resource_attributes", expected="text", got=f"{key!r}: {value!r}")
        found[validate_text("resource_attributes", key)] = validate_text("resource_attributes", value)
    own = found.pop("service.name", "")
    named = validate_text("service_name", service_name or "")
    named = named or validate_text("OTEL_SERVICE_NAME", env.get("OTEL_SERVICE_NAME", "").strip())
    return Resource(named or own or "runspan", found)
