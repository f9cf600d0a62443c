"""Authentication, authorization and rate limits of requests.

With API keys, a key or a session permits a request. Without keys, ``OriginGuard`` protects the server against DNS
rebinding and cross-site requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from runspan.errors import ConfigError, Forbidden, RateLimited, Unauthorized
from runspan.web.api_keys import RUNS_READ, RUNS_WRITE, ApiKeyStore
from runspan.web.config import WebConfig
from runspan.web.limits import ADMISSION, Admission
from runspan.web.sessions import SessionCookie
from runspan.web.windows import MINUTE, Window, Windows

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_BUCKET: Final = 1.0
"""Seconds whose requests are counted as one number, so that a client takes as little memory as a minute has seconds."""
TRACES_LIMIT: Final = "traces"
"""The rate limit of ``/v1/traces``; see ``WebConfig.traces_per_minute``. Other requests count by permission."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The sender of a request."""

    tenant: str = ""
    """Whose runs the sender reads and writes."""
    authenticated: bool = False
    """Whether an API key restricts the sender to this tenant."""


class RateLimiter:
    """A limit of requests per minute and client over a moving window. 0 means no limit. Thread-safe.

    name: Distinguishes this limit from others that are counted in the same ``windows``.
    """

    def __init__(self, name: str, per_minute: int, windows: Windows) -> None:
        self._name = name
        self._limit = per_minute
        self._windows = windows

    def check(self, client: str) -> None:
        """Count a request. Raises RateLimited, and counts nothing, if the client has reached the limit."""
        wait = self._change(client, _count)
        if wait:
            raise RateLimited(
                f"more than {self._limit} requests a minute",
                retry_after=wait,
                hint="retry after the seconds in Retry-After",
            )

    def record(self, client: str) -> None:
        """Count an event, unless the client has reached the limit."""
        self._change(client, _count)

    def retry_after(self, client: str) -> int:
        """Return the seconds that the client has to wait, or 0 if it has not reached the limit. Counts nothing."""
        return self._change(client, _wait)

    def _change(self, client: str, change: Callable[[int, Window, float], int]) -> int:
        if not self._limit:
            return 0
        return self._windows.change(f"{self._name} {client}", partial(change, self._limit))


def _count(limit: int, window: Window, now: float) -> int:
    """Count a request now, and return 0, or return the seconds to wait if the window has reached the limit."""
    wait = _wait(limit, window, now)
    if wait:
        return wait
    if window and now < window[-1][0] + _BUCKET:
        first, _, count = window[-1]
        window[-1] = first, now, count + 1
    else:
        window.append((now, now, 1))
    return 0


def _wait(limit: int, window: Window, now: float) -> int:
    while window and window[0][1] <= now - MINUTE:
        del window[0]
    if sum([count for _, _, count in window]) < limit:
        return 0
    return max(1, math.ceil(window[0][1] + MINUTE - now))


class Authenticator:
    """Authorizes requests by API key, or by the session of a browser that logged in with one.

    Without a key store, or while no key was ever created, the server is open: anyone may read and write, as far as
    ``OriginGuard`` allows. A session only reads, so that no other site can make a browser write.
    """

    def __init__(
        self,
        api_keys: ApiKeyStore | None,
        config: WebConfig,
        origin_guard: OriginGuard,
        windows: Windows,
        session_cookie: SessionCookie | None = None,
    ) -> None:
        self._api_keys = api_keys
        self._session_cookie = session_cookie
        self._origin_guard = origin_guard
        self._key_limiters = {
            RUNS_READ: RateLimiter("key reads", config.reads_per_minute, windows),
            RUNS_WRITE: RateLimiter("key writes", config.writes_per_minute, windows),
            TRACES_LIMIT: RateLimiter("key traces", config.traces_per_minute, windows),
        }
        self._address_limiters = {
            RUNS_READ: RateLimiter("address reads", config.open_reads_per_minute, windows),
            RUNS_WRITE: RateLimiter("address writes", config.open_writes_per_minute, windows),
            TRACES_LIMIT: RateLimiter("address traces", 0, windows),
        }

    def authorize(self, environ: WSGIEnvironment, permission: str, rate_limit: str = "") -> Principal:
        """Return the sender of a request if it has the permission.

        The request counts towards ``rate_limit``, by default that of the permission, and takes one of the places of the
        sender's tenant. Raises Unauthorized, Forbidden, RateLimited or ServerBusy.
        """
        admission: Admission | None = environ.get(ADMISSION)
        if admission is None:
            return self._authorize(environ, permission, rate_limit or permission)
        principal: Principal | None = admission.principals.get((permission, rate_limit))
        if principal is None:
            principal = self._authorize(environ, permission, rate_limit or permission)
            admission.principals[permission, rate_limit] = principal
        admission.enter(principal.tenant)
        return principal

    def _authorize(self, environ: WSGIEnvironment, permission: str, rate_limit: str) -> Principal:
        api_keys = self._api_keys
        secret = _secret(environ)
        key = api_keys.find(secret) if api_keys and secret else None
        if key is None and not secret and self._session_cookie is not None and permission == RUNS_READ:
            key = self._session_cookie.find_key(environ)
        if key is None:
            if api_keys is None or api_keys.unused:
                self._origin_guard.check(environ, writes=permission == RUNS_WRITE)
                self._address_limiters[rate_limit].check(environ.get("REMOTE_ADDR", ""))
                return Principal()
            raise Unauthorized(
                "unknown, expired or revoked key" if secret else "no key",
                hint="send a key in the header x-api-key; `runspan keys create` makes one",
            )
        if permission not in key.permissions:
            raise Forbidden(
                where=f"key {key.id}",
                expected=f"the permission {permission}",
                got=", ".join(sorted(key.permissions)),
                hint="use a key that has it",
            )
        self._key_limiters[rate_limit].check(key.id)
        return Principal(key.tenant, authenticated=True)


def _secret(environ: WSGIEnvironment) -> str:
    """Return the key of a request: ``x-api-key``, else ``Authorization: Bearer``, else an empty string."""
    secret: str = environ.get("HTTP_X_API_KEY", "")
    if not secret:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        secret = token if scheme.lower() == "bearer" else ""
    return secret.strip()


_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


def is_same_origin(environ: WSGIEnvironment, origin: str) -> bool:
    """Whether a page of this server made the request, or no browser. ``origin`` is that of the public URL, or empty.

    Browsers send ``Sec-Fetch-Site`` over TLS and to loopback, where ``none`` means that the user typed the address, and
    ``Origin`` with every POST. A client that sends neither is no browser, so it has no user who could be tricked.
    """
    site: str | None = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site in ("same-origin", "none")
    sent: str | None = environ.get("HTTP_ORIGIN")
    if sent is None or sent.lower() == origin:
        return True
    host: str = environ.get("HTTP_HOST", "")
    try:
        return host != "" and urlsplit(sent).netloc.lower() == host.lower()
    except ValueError:
        return False


class OriginGuard:
    """Decides which requests a server accepts without a key: those of programs, and of its own pages in a browser.

    The same-origin policy of browsers keeps pages of other sites from reading responses. But the DNS name of such a
    site may start to resolve to this machine after its page was loaded (DNS rebinding); then only the ``Host`` header
    reveals whose page sent the request.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), origin: str = "") -> None:
        """Accept the names of loopback, ``allowed_hosts`` and the host of ``origin``, the origin of the public URL.

        ``allowed_hosts`` are names and addresses without a port. Raises ConfigError for anything else.
        """
        host = urlsplit(origin).hostname
        self._allowed = {*map(_parse_allowed_host, allowed_hosts), *([_normalize_host(host)] if host else [])}
        self._origin = origin
        self._is_allowed = lru_cache(maxsize=100)(self._check_host)  # most requests are sent to the same host

    def check(self, environ: WSGIEnvironment, *, writes: bool) -> None:
        """Raise Forbidden if the request must not be accepted. ``writes`` is whether it changes anything."""
        authority = environ.get("HTTP_HOST", "")
        if authority and not self._is_allowed(authority):  # every browser sends one
            raise Forbidden(
                where="Host",
                expected="localhost, 127.0.0.1, [::1] or an allowed name",
                got=repr(authority[:100]),
                hint="a server without API keys answers to no other name: allow it with `runspan serve --allow-host "
                "NAME`, or make a key with `runspan keys create`",
            )
        if writes and not is_same_origin(environ, self._origin):
            raise Forbidden(
                where="Origin",
                expected="a program, or a page of this server",
                got=repr(environ.get("HTTP_ORIGIN", "a page of another site")[:100]),
                hint="without API keys no other site may write: send it from a program, as `runspan export` does",
            )

    def _check_host(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        host = _normalize_host(match[1])
        return host in self._allowed or is_loopback(host)


def _parse_allowed_host(host: str) -> str:
    match = _AUTHORITY.fullmatch(f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host)
    if match is None or match[1] != match[0]:
        raise ConfigError(
            where="allowed host",
            expected="a name or an address without a port, such as runs.example.com",
            got=repr(host),
        )
    return _normalize_host(match[1])


def _normalize_host(host: str) -> str:
    """Return a host in lower case, without brackets and trailing dot; an address in its canonical form."""
    host = host.strip("[]").lower().removesuffix(".")
    try:
        return str(ip_address(host))
    except ValueError:
        return host


def is_loopback(host: str) -> bool:
    """Whether the host is this machine: browsers resolve ``localhost`` and its subdomains without asking DNS."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
