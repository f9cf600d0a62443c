"""``ExporterConfig``: where and how to export, from arguments and OpenTelemetry's variables; no I/O.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ has the variables and the rules of the endpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import unquote, urlsplit

from runspan.errors import ConfigError
from runspan.http.client import TlsConfig
from runspan.http.urls import parse_url, refuse_login
from runspan.otlp.env import Headers, basic_auth, read_headers, secret_parts, validate_headers

HTTP: Final = "http/protobuf"
GRPC: Final = "grpc"
TRACES_PATH: Final = "/v1/traces"
DEFAULT_TIMEOUT: Final = 10.0
_EXPORTER_PROTOCOLS: Final = {"otlp_proto_http": HTTP, "otlp_proto_grpc": GRPC}
"""Values of ``OTEL_TRACES_EXPORTER`` that name a protocol."""
COMPRESSIONS: Final = ("gzip", "none")
REPLAY_HEADER: Final = "x-runspan-replay"
"""On requests whose spans a Collector passes on and does not count."""


@dataclass(frozen=True, slots=True)
class ExporterConfig:
    """Where and how to export."""

    endpoint: str
    """For HTTP the URL that is posted to, for gRPC ``host:port``; without a login."""

    protocol: str = HTTP
    headers: Headers = field(default=(), repr=False)
    """Names in lower case. The values are secrets and appear in no message."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds for one attempt."""

    compression: str = "gzip"
    tls: TlsConfig = field(default_factory=TlsConfig)
    insecure: bool = False
    """For gRPC: no TLS. For HTTP the scheme of the URL decides."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may contain: header values and their parts, as in ``Bearer x``, and the URL's query."""
        values = [value for name, value in self.headers if name != REPLAY_HEADER]
        return tuple(secret_parts([*values, urlsplit(self.endpoint).query]))

    @property
    def display_url(self) -> str:
        """The endpoint as errors and reports show it."""
        return self.endpoint.partition("?")[0]

    @property
    def identity(self) -> bytes:
        """The identity of the receiver: another URL, login or tenant is another receiver. Contains secrets."""
        headers = sorted(header for header in self.headers if header[0] != REPLAY_HEADER)
        return repr((self.protocol, self.endpoint, headers, self.tls.client_certificate)).encode()

    def as_replay(self) -> ExporterConfig:
        """Return the same config with the header that marks old runs, which dashboards do not count again."""
        others = [header for header in self.headers if header[0] != REPLAY_HEADER]
        return replace(self, headers=(*others, (REPLAY_HEADER, "true")))


def exporter_config(
    env: Mapping[str, str],
    *,
    api_key: str | None = None,
    endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    compression: str | None = None,
) -> ExporterConfig:
    """Return the config of the ``OTEL_EXPORTER_OTLP_[TRACES_]*`` variables; an argument overrides its variable.

    An ``endpoint`` argument without a path gets ``/v1/traces``; one with a path is used as it is. It holds no login,
    as it may come from a command line; the URL of a variable may hold one. The ``api_key`` of a runspan server is added
    to the headers of the variables.

    Raises ConfigError, which names the variable and never quotes a header.
    """
    protocol = _one_of("PROTOCOL", protocol or _protocol(env), (HTTP, GRPC))
    chosen = compression or _variable(env, "COMPRESSION")[1] or ("gzip" if protocol == HTTP else "none")
    given = read_headers(*_variable(env, "HEADERS")) if headers is None else list(headers.items())
    if api_key and headers is None:
        given.append(("x-api-key", api_key))
    address, insecure, login = _endpoint(env, endpoint, protocol, _flag(*_variable(env, "INSECURE")))
    return ExporterConfig(
        endpoint=address,
        protocol=protocol,
        headers=validate_headers("OTLP headers", [*login, *given]),
        timeout=_timeout(env, timeout),
        compression=_one_of("COMPRESSION", chosen, COMPRESSIONS),
        tls=TlsConfig(
            certificate=_variable(env, "CERTIFICATE")[1] or None,
            client_certificate=_variable(env, "CLIENT_CERTIFICATE")[1] or None,
            client_key=_variable(env, "CLIENT_KEY")[1] or None,
        ),
        insecure=insecure,
    )


def _variable(env: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the name and value of the variable that applies; OpenTelemetry treats an empty one as unset."""
    for prefix in ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"):
        value = env.get(prefix + name, "").strip()
        if value:
            return prefix + name, value
    return "OTEL_EXPORTER_OTLP_" + name, ""


def _protocol(env: Mapping[str, str]) -> str:
    """Return the protocol of the variables.

    As in the SDK for Python, an exporter of one protocol counts more than ``OTEL_EXPORTER_OTLP_PROTOCOL``, which
    ``opentelemetry-instrument`` sets to ``grpc`` where it is not set.
    """
    for exporter in env.get("OTEL_TRACES_EXPORTER", "").split(","):
        if exporter.strip() in _EXPORTER_PROTOCOLS:
            return _EXPORTER_PROTOCOLS[exporter.strip()]
    return _variable(env, "PROTOCOL")[1] or HTTP


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value.lower() not in known:
        raise ConfigError(where=f"OTEL_EXPORTER_OTLP_{name}", expected=" or ".join(known), got=repr(value))
    return value.lower()


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("", "true", "false"):
        raise ConfigError(where=name, expected="true or false", got=repr(value))
    return value.lower() == "true"


def _timeout(env: Mapping[str, str], given: float | None) -> float:
    """Return seconds. The specification writes milliseconds, OpenTelemetry's Python packages read seconds: a value that
    can only be one of them is read as that, and any other is refused."""
    if given is not None:
        if not 0 < given < math.inf:
            raise ConfigError(where="timeout", expected="seconds above 0", got=repr(given))
        return given
    name, value = _variable(env, "TIMEOUT")
    if not value:
        return DEFAULT_TIMEOUT
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if 0 < number < 100:
        return number
    if 1000 <= number < 1e9:
        return number / 1000
    raise ConfigError(
        where=name,
        expected="milliseconds from 1000, or seconds below 100",
        got=repr(value),
        hint="OpenTelemetry specifies milliseconds, its Python packages read seconds",
    )


def _endpoint(
    env: Mapping[str, str], given: str | None, protocol: str, insecure: bool
) -> tuple[str, bool, list[tuple[str, str]]]:
    """Return the URL to post to or the target of the gRPC channel, whether it has no TLS, and the header of the login
    in its URL."""
    name, text = _variable(env, "ENDPOINT")
    text = text or ("http://localhost:4318" if protocol == HTTP else "http://localhost:4317")
    if given:
        name, text = "endpoint", given.strip()
        refuse_login(
            name, text, "put it into OTEL_EXPORTER_OTLP_ENDPOINT or _HEADERS: a command line is seen by others"
        )
    if protocol == HTTP:
        url = parse_url(name, text, "http://host:4318 or https://host")
        is_base = name == "OTEL_EXPORTER_OTLP_ENDPOINT" or (name == "endpoint" and url.path in ("", "/"))
        path = url.path.rstrip("/") + TRACES_PATH if is_base else url.path or "/"
        address = url._replace(netloc=url.netloc.rpartition("@")[2], path=path, fragment="").geturl()
    else:
        if "://" not in text:
            return text, insecure, []
        url = parse_url(name, text, "host:4317, http://… or https://…")
        port = "" if url.port else ":443" if url.scheme == "https" else ":80"
        address = url.netloc.rpartition("@")[2] + port
    login = [] if url.username is None else [basic_auth(unquote(url.username), unquote(url.password or ""))]
    return address, url.scheme == "http", login
