"""Where and how to deliver: the settings, and OpenTelemetry's variables for them; no I/O, the environment is passed in.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ has the variables and the rules of the endpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from runspan.errors import SettingError
from runspan.http.urls import validate_host
from runspan.otlp.env import basic_auth, read_headers, secret_parts, validate_headers

HTTP: Final = "http/protobuf"
GRPC: Final = "grpc"
TRACES_PATH: Final = "/v1/traces"
DEFAULT_TIMEOUT: Final = 10.0
COMPRESSIONS: Final = ("gzip", "none")
REPLAY_HEADER: Final = "x-runspan-replay"
"""On requests whose spans a Collector passes on and does not count."""

_AFTER_HOST = re.compile(r"[/?#\\]")


@dataclass(frozen=True, slots=True)
class ExporterConfig:
    """endpoint: for HTTP the URL that is posted to, for gRPC ``host:port``. It holds no password.

    headers: names in lower case; their values are secrets and appear nowhere. timeout: seconds for one attempt.
    certificate: a PEM file with the authorities to trust. client_certificate, client_key: PEM files.
    insecure: gRPC without TLS; for HTTP the URL's scheme says it.
    """

    endpoint: str
    protocol: str = HTTP
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout: float = DEFAULT_TIMEOUT
    compression: str = "gzip"
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    insecure: bool = False

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must appear in no message: header values, and their parts, as in ``Bearer x``; and the URL's query."""
        values = [value for name, value in self.headers if name != REPLAY_HEADER]
        return tuple(secret_parts([*values, urlsplit(self.endpoint).query]))

    @property
    def display_url(self) -> str:
        """The endpoint as errors and reports show it."""
        return self.endpoint.partition("?")[0]

    @property
    def identity(self) -> bytes:
        """Who takes what is sent: another URL, login or tenant is another one. Holds secrets."""
        headers = sorted(header for header in self.headers if header[0] != REPLAY_HEADER)
        return repr((self.protocol, self.endpoint, headers, self.client_certificate)).encode()

    def as_replay(self) -> ExporterConfig:
        """The same for runs that are no news: with the header that says so."""
        others = [header for header in self.headers if header[0] != REPLAY_HEADER]
        return replace(self, headers=(*others, (REPLAY_HEADER, "true")))


def exporter_config(
    env: Mapping[str, str],
    *,
    endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    compression: str | None = None,
    certificate: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    insecure: bool | None = None,
) -> ExporterConfig:
    """The settings of OTEL_EXPORTER_OTLP_[TRACES_]* variables; an argument that is not None goes before them.

    An ``endpoint`` argument without a path gets ``/v1/traces``; one with a path is used as it is. It holds no login, as
    it may stand on a command line; a variable's URL may. SettingError names the variable and never quotes a header.
    """
    protocol = _one_of("PROTOCOL", protocol or _variable(env, "PROTOCOL")[1] or HTTP, (HTTP, GRPC))
    chosen = compression or _variable(env, "COMPRESSION")[1] or ("gzip" if protocol == HTTP else "none")
    given = headers.items() if headers is not None else read_headers(*_variable(env, "HEADERS"))
    insecure = _flag(*_variable(env, "INSECURE")) if insecure is None else insecure
    resolve = _http_endpoint if protocol == HTTP else _grpc_endpoint
    address, insecure, login = resolve(env, endpoint, insecure)
    return ExporterConfig(
        endpoint=address,
        protocol=protocol,
        headers=validate_headers("OTLP headers", [*login, *given]),
        timeout=_timeout(*_variable(env, "TIMEOUT")) if timeout is None else _seconds(timeout),
        compression=_one_of("COMPRESSION", chosen, COMPRESSIONS),
        certificate=certificate or _variable(env, "CERTIFICATE")[1] or None,
        client_certificate=client_certificate or _variable(env, "CLIENT_CERTIFICATE")[1] or None,
        client_key=client_key or _variable(env, "CLIENT_KEY")[1] or None,
        insecure=insecure,
    )


def with_api_key(env: Mapping[str, str], key: str) -> dict[str, str]:
    """The variables with the API key of a runspan server among the headers that they name."""
    given = _variable(env, "HEADERS")[1]
    header = f"x-api-key={quote(key, safe='')}"
    return {**env, "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"{given},{header}" if given else header}


def _variable(env: Mapping[str, str], name: str) -> tuple[str, str]:
    """Name and value of the variable that counts; OpenTelemetry takes an empty one for an unset one."""
    for prefix in ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"):
        value = env.get(prefix + name, "").strip()
        if value:
            return prefix + name, value
    return "OTEL_EXPORTER_OTLP_" + name, ""


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value.lower() not in known:
        raise SettingError(where=f"OTEL_EXPORTER_OTLP_{name}", expected=" or ".join(known), got=repr(value))
    return value.lower()


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("", "true", "false"):
        raise SettingError(where=name, expected="true or false", got=repr(value))
    return value.lower() == "true"


def _seconds(number: float) -> float:
    if not 0 < number < math.inf:
        raise SettingError(where="timeout", expected="seconds above 0", got=repr(number))
    return number


def _timeout(name: str, value: str) -> float:
    """Seconds. The specification writes milliseconds, OpenTelemetry's Python packages read seconds: a value that can
    only be one of the two is taken for it, and the others are refused."""
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
    raise SettingError(
        where=name,
        expected="milliseconds from 1000, or seconds below 100",
        got=repr(value),
        hint="OpenTelemetry specifies milliseconds, its Python packages read seconds",
    )


def _endpoint(env: Mapping[str, str], given: str | None, default: str) -> tuple[str, str, bool]:
    """Where it comes from, the text, and whether it is a base that the path is appended to."""
    if given:
        text = given.strip()
        _refuse_login(text)
        return "endpoint", text, _split("endpoint", text).path in ("", "/")
    name, value = _variable(env, "ENDPOINT")
    return name, value or default, name != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def _http_endpoint(
    env: Mapping[str, str], given: str | None, insecure: bool
) -> tuple[str, bool, list[tuple[str, str]]]:
    name, text, base = _endpoint(env, given, "http://localhost:4318")
    url = _split(name, text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SettingError(where=name, expected="http://host:4318 or https://host", got=repr(_place(url, text)))
    validate_host(name, text)
    path = url.path.rstrip("/") + TRACES_PATH if base else url.path or "/"
    bare = url._replace(netloc=url.netloc.rpartition("@")[2], path=path, fragment="")
    return bare.geturl(), url.scheme == "http", _login(url)


def _grpc_endpoint(
    env: Mapping[str, str], given: str | None, insecure: bool
) -> tuple[str, bool, list[tuple[str, str]]]:
    name, text, _ = _endpoint(env, given, "http://localhost:4317")
    if "://" not in text:
        return text, insecure, []
    url = _split(name, text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SettingError(where=name, expected="host:4317, http://… or https://…", got=repr(_place(url, text)))
    validate_host(name, text)
    netloc = url.netloc.rpartition("@")[2]
    port = "" if url.port else ":443" if url.scheme == "https" else ":80"
    return netloc + port, url.scheme == "http", _login(url)


def _refuse_login(text: str) -> None:
    if "@" in _AFTER_HOST.split(text.partition("://")[2] or text)[0]:
        raise SettingError(
            where="endpoint",
            expected="a URL without a login",
            got="one with it",
            hint="put it into OTEL_EXPORTER_OTLP_ENDPOINT or _HEADERS: a command line is seen by others",
        )


def _split(name: str, text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise SettingError(where=name, expected="a URL", got="one that cannot be read") from None
    return url


def _place(url: SplitResult, text: str) -> str:
    return text.partition("?")[0].rpartition("@")[2] if url.netloc or "@" in text else text.partition("?")[0]


def _login(url: SplitResult) -> list[tuple[str, str]]:
    """A user and password in the URL, as the header that carries them."""
    if url.username is None:
        return []
    return [basic_auth(unquote(url.username), unquote(url.password or ""))]
