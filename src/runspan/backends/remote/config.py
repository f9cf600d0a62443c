"""``RemoteConfig``: where a remote backend is and how to authenticate there; no I/O, the environment is passed in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from runspan.errors import ConfigError, Forbidden
from runspan.http.client import TlsConfig
from runspan.http.urls import parse_base_url
from runspan.otlp.env import Headers, basic_auth, read_headers, secret_parts, validate_headers

PREFIX: Final = "RUNSPAN_BACKEND_"
HEADERS: Final = PREFIX + "HEADERS"
TENANT_HEADERS: Final[Mapping[str, str]] = {"tempo": "x-scope-orgid", "jaeger": "x-tenant"}
"""The header for the tenant of each kind of backend, unless ``RUNSPAN_BACKEND_TENANT_HEADER`` overrides it."""

_OF_RUNS: Final = "{tenant}"
_TENANT_NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9!_.*'()-]{1,150}")
"""What Tempo takes as the name of one tenant: https://grafana.com/docs/mimir/latest/configure/about-tenant-ids/"""

DEFAULT_TIMEOUT: Final = 15.0
DEFAULT_CONCURRENCY: Final = 16
DEFAULT_MAX_BYTES: Final = 512 << 20
LOOKBACK_DAYS: Final = 400


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """Where a remote backend is and how to use it."""

    kind: str
    """``tempo`` or ``jaeger``."""

    base: str
    """``http(s)://host:port/prefix`` without a login and a final slash."""

    headers: Headers = field(default=(), repr=False)
    """Sent with every request: the login, and the backend's tenant unless it is a template. The values are secrets."""

    tenant_header: str = ""
    tenant: str = field(default="", repr=False)
    """The backend's own tenant, or a template with ``{tenant}`` for that of the runs; empty for none."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds for one request, and for the wait for one of the ``concurrency`` places before it."""

    concurrency: int = DEFAULT_CONCURRENCY
    """Requests in flight."""

    max_bytes: int = DEFAULT_MAX_BYTES
    """Of a response body."""

    lookback_days: int = LOOKBACK_DAYS
    """How far back a backend that refuses wide ranges of time is searched, one range after the other."""

    tls: TlsConfig = field(default_factory=TlsConfig)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may contain: header values and their parts, as in ``Bearer x``, longest first."""
        return tuple(secret_parts(value for _, value in self.headers))

    @property
    def has_tenants(self) -> bool:
        """Whether the backend's tenant is another one for each tenant of runs."""
        return _OF_RUNS in self.tenant

    def tenant_headers(self, tenant: str) -> Headers:
        """Return the header with the backend's tenant for a tenant of runs; none if the backend has no tenants.

        Raises Forbidden if the runs have no tenant, or one that is no name for the backend: ``a|b`` would be two.
        """
        if not self.tenant:
            return ()
        name = self.tenant.replace(_OF_RUNS, tenant)
        if self.has_tenants and not (tenant and _TENANT_NAME.fullmatch(name)):
            raise Forbidden(
                where="tenant",
                expected="up to 150 letters, digits and some of !-_.*'(), which name a tenant of the backend",
                got=repr(name[:160]) if tenant else "runs without a tenant",
                hint="use a key of such a tenant: runspan keys create --tenant NAME",
            )
        return ((self.tenant_header, name),)

    @property
    def name(self) -> str:
        """The backend as errors show it: ``Tempo at http://host:3200``."""
        return f"{self.kind.title()} at {self.base}"


def remote_config(url: str, env: Mapping[str, str]) -> RemoteConfig:
    """Return the config of ``KIND+http(s)://host:port/prefix`` and the ``RUNSPAN_BACKEND_…`` variables.

    HEADERS is ``key=value,key=value`` with percent-encoded values; USER with PASSWORD, or TOKEN, is the login; TENANT
    is the backend's own tenant, in which ``{tenant}`` stands for that of the runs; TIMEOUT, CONCURRENCY, MAX_BYTES,
    LOOKBACK_DAYS, CERTIFICATE, CLIENT_CERTIFICATE and CLIENT_KEY are as in ``RemoteConfig``. ConfigError names the
    variable and never quotes a secret.
    """
    kind, base = _kind_and_base(url)

    def variable(name: str) -> str:
        """Return a variable with our prefix. An empty one counts as unset."""
        return env.get(PREFIX + name, "").strip()

    tenant, tenant_header = variable("TENANT"), variable("TENANT_HEADER") or TENANT_HEADERS[kind]
    validate_headers(PREFIX + "TENANT", [(tenant_header, tenant)])
    headers = [*_login(variable), *([] if _OF_RUNS in tenant or not tenant else [(tenant_header, tenant)])]
    return RemoteConfig(
        kind,
        base,
        headers=validate_headers(HEADERS, [*headers, *read_headers(HEADERS, variable("HEADERS"))]),
        tenant_header=tenant_header.lower(),
        tenant=tenant,
        timeout=_number("TIMEOUT", variable("TIMEOUT"), "seconds above 0", float, DEFAULT_TIMEOUT),
        concurrency=int(_number("CONCURRENCY", variable("CONCURRENCY"), "1 or more", int, DEFAULT_CONCURRENCY)),
        max_bytes=int(_number("MAX_BYTES", variable("MAX_BYTES"), "bytes", int, DEFAULT_MAX_BYTES)),
        lookback_days=int(_number("LOOKBACK_DAYS", variable("LOOKBACK_DAYS"), "days", int, LOOKBACK_DAYS)),
        tls=TlsConfig(
            certificate=variable("CERTIFICATE") or None,
            client_certificate=variable("CLIENT_CERTIFICATE") or None,
            client_key=variable("CLIENT_KEY") or None,
        ),
    )


def _number(name: str, text: str, expected: str, parse: Callable[[str], float], default: float) -> float:
    """Return a number above 0."""
    try:
        number = parse(text) if text else default
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(where=PREFIX + name, expected=expected, got=repr(text[:40]))
    return number


def _kind_and_base(url: str) -> tuple[str, str]:
    forms = " or ".join(f"{kind}+http(s)://HOST:PORT" for kind in TENANT_HEADERS)
    kind, _, rest = url.partition("+")
    if kind.lower() not in TENANT_HEADERS:
        raise ConfigError(where="backend", expected=forms, got=repr(url[:200]))
    login_hint = f"set {PREFIX}USER and {PREFIX}PASSWORD, or {PREFIX}TOKEN: a command line is seen by others"
    base = parse_base_url("backend", rest, forms, login_hint=login_hint, query_hint=f"secrets go into {HEADERS}")
    return kind.lower(), base


def _login(variable: Callable[[str], str]) -> list[tuple[str, str]]:
    user, password, token = variable("USER"), variable("PASSWORD"), variable("TOKEN")
    if token and (user or password):
        raise ConfigError(
            where=PREFIX + "TOKEN", expected="a token, or a user and a password", got="both", hint="unset one of them"
        )
    if token:
        return [("authorization", f"Bearer {token}")]
    if password and not user:
        raise ConfigError(where=PREFIX + "USER", expected="a user for the password", got="none")
    if user:
        return [basic_auth(user, password)]
    return []
