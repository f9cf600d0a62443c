"""Where a remote backend is and how to log in there: the settings; no I/O, the environment is passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from runspan.errors import SettingError
from runspan.http.urls import validate_host
from runspan.otlp.env import basic_auth, read_headers, secret_parts, validate_headers

PREFIX: Final = "RUNSPAN_BACKEND_"
HEADERS: Final = PREFIX + "HEADERS"
TENANT_HEADERS: Final[Mapping[str, str]] = {"tempo": "x-scope-orgid", "jaeger": "x-tenant"}
"""The header in which each kind of backend takes its tenant, unless ``RUNSPAN_BACKEND_TENANT_HEADER`` says another."""

DEFAULT_TIMEOUT: Final = 15.0
DEFAULT_CONCURRENCY: Final = 8
DEFAULT_MAX_BYTES: Final = 512 << 20

_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """kind: ``tempo`` or ``jaeger``. base: ``http(s)://host:port/prefix`` without a login and without a last slash.

    headers: sent with every request, the login and the backend's tenant among them; names in lower case. Their values
    are secrets and appear nowhere. timeout: seconds for one request, waiting for a place included in neither.
    concurrency: requests at a time. max_bytes: the largest answer read.
    certificate: a PEM file with the authorities to trust; client_certificate, client_key: PEM files.
    """

    kind: str
    base: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout: float = DEFAULT_TIMEOUT
    concurrency: int = DEFAULT_CONCURRENCY
    max_bytes: int = DEFAULT_MAX_BYTES
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must appear in no message: header values and their parts, as in ``Bearer x``, longest first."""
        return tuple(secret_parts(value for _, value in self.headers))

    @property
    def name(self) -> str:
        """The backend as errors show it: ``Tempo at http://host:3200``."""
        return f"{self.kind.title()} at {self.base}"


def remote_config(url: str, env: Mapping[str, str]) -> RemoteConfig:
    """The settings of ``KIND+http(s)://host:port/prefix`` and the ``RUNSPAN_BACKEND_…`` variables.

    HEADERS is ``key=value,key=value`` with percent-encoded values; USER with PASSWORD, or TOKEN, is the login; TENANT
    is the backend's own tenant; TIMEOUT, CONCURRENCY, MAX_BYTES, CERTIFICATE, CLIENT_CERTIFICATE and CLIENT_KEY are as
    in ``RemoteSettings``. SettingError names the variable and never quotes a secret.
    """
    kind, base = _place(url)
    variable = _Variables(env)
    tenant, tenant_header = variable("TENANT"), variable("TENANT_HEADER") or TENANT_HEADERS[kind]
    headers = [*_login(variable), *([(tenant_header, tenant)] if tenant else [])]
    return RemoteConfig(
        kind,
        base,
        headers=validate_headers(HEADERS, [*headers, *read_headers(HEADERS, variable("HEADERS"))]),
        timeout=variable.number("TIMEOUT", "seconds above 0", DEFAULT_TIMEOUT, lambda text: _positive(float(text))),
        concurrency=variable.number("CONCURRENCY", "1 or more", DEFAULT_CONCURRENCY, lambda text: _positive(int(text))),
        max_bytes=variable.number("MAX_BYTES", "bytes", DEFAULT_MAX_BYTES, lambda text: _positive(int(text))),
        certificate=variable("CERTIFICATE") or None,
        client_certificate=variable("CLIENT_CERTIFICATE") or None,
        client_key=variable("CLIENT_KEY") or None,
    )


class _Variables:
    """The variables with our prefix. An empty one counts as unset."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def __call__(self, name: str) -> str:
        return self._env.get(PREFIX + name, "").strip()

    def number(self, name: str, expected: str, default: _N, read: Callable[[str], _N]) -> _N:
        text = self(name)
        if not text:
            return default
        try:
            return read(text)
        except (ValueError, OverflowError):
            raise SettingError(where=PREFIX + name, expected=expected, got=repr(text[:40])) from None


def _positive(number: _N) -> _N:
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _place(url: str) -> tuple[str, str]:
    """Kind and base of a backend URL."""
    forms = " or ".join(f"{kind}+http(s)://HOST:PORT" for kind in TENANT_HEADERS)
    kind, plus, rest = url.partition("+")
    parts = _split(rest, forms)
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise SettingError(
            where="backend",
            expected="a URL without a login",
            got="one with it",
            hint=f"set {PREFIX}USER and {PREFIX}PASSWORD, or {PREFIX}TOKEN: a command line is seen by others",
        )
    if parts.query or parts.fragment:
        got = "one with a query or fragment"
        raise SettingError(where="backend", expected=forms, got=got, hint=f"secrets go into {HEADERS}")
    known = plus and kind.lower() in TENANT_HEADERS and parts.scheme in ("http", "https") and parts.hostname
    if not known:
        raise SettingError(where="backend", expected=forms, got=repr(url[:200]))
    validate_host("backend", rest)
    return kind.lower(), parts.geturl().rstrip("/")


def _split(text: str, forms: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise SettingError(where="backend", expected=forms, got="a URL that cannot be read") from None
    return parts


def _login(variable: _Variables) -> list[tuple[str, str]]:
    user, password, token = variable("USER"), variable("PASSWORD"), variable("TOKEN")
    if token and (user or password):
        raise SettingError(
            where=PREFIX + "TOKEN", expected="a token, or a user and a password", got="both", hint="unset one of them"
        )
    if token:
        return [("authorization", f"Bearer {token}")]
    if password and not user:
        raise SettingError(where=PREFIX + "USER", expected="a user for the password", got="none")
    if user:
        return [basic_auth(user, password)]
    return []
