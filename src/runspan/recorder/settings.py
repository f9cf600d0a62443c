"""Where a recorder sends to and as whom, from arguments and OpenTelemetry's variables; the environment is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote

from runspan.delivery import DeliverySettings, settings_from
from runspan.errors import SettingError
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
    env = dict(environ or {})
    key = env.get(API_KEY, "").strip()
    if key and headers is None:
        name = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
        given = env.get(name, "").strip() or env.get("OTEL_EXPORTER_OTLP_HEADERS", "").strip()
        env[name] = f"{given},x-api-key={quote(key)}" if given else f"x-api-key={quote(key)}"
    return settings_from(env, endpoint=endpoint, protocol=protocol, headers=headers, timeout=timeout)


def resource_of(
    environ: Mapping[str, str] | None, service_name: str | None, attributes: Mapping[str, str] | None
) -> Resource:
    """Arguments go before ``OTEL_SERVICE_NAME``, and that before ``OTEL_RESOURCE_ATTRIBUTES``."""
    env = environ or {}
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingError(where="OTEL_RESOURCE_ATTRIBUTES", expected="key=value,key=value", got=repr(pair))
        found[key.strip()] = unquote(value.strip())
    found.update(attributes or {})
    own = found.pop("service.name", "")
    return Resource(service_name or env.get("OTEL_SERVICE_NAME", "").strip() or own or "runspan", found)
