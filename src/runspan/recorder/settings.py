"""Where a recorder sends to and as whom, from arguments and OpenTelemetry's variables; the environment is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runspan.delivery import DeliverySettings, settings_from, with_api_key
from runspan.errors import SettingError
from runspan.otlp.headers import read_attributes
from runspan.otlp.wire import Resource

API_KEY: Final = "RUNSPAN_API_KEY"
"""The variable with the API key of a runspan server, as ``runspan export`` has it too."""


def delivery_settings(
    environ: Mapping[str, str] | None,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    timeout: float | None,
) -> DeliverySettings:
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
    if key and headers is None:
        env = with_api_key(env, key)
    return settings_from(env, endpoint=endpoint, protocol=protocol, headers=headers, timeout=timeout)


def resource_of(
    environ: Mapping[str, str] | None, service_name: str | None, attributes: Mapping[str, str] | None
) -> Resource:
    """Arguments go before ``OTEL_SERVICE_NAME``, and that before ``OTEL_RESOURCE_ATTRIBUTES``."""
    env = environ or {}
    found = {**read_attributes(env.get("OTEL_RESOURCE_ATTRIBUTES", "")), **(attributes or {})}
    own = found.pop("service.name", "")
    return Resource(service_name or env.get("OTEL_SERVICE_NAME", "").strip() or own or "runspan", found)
