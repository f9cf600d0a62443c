"""Protection of servers without API keys against DNS rebinding and cross-site requests; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runspan.errors import ConfigError, Forbidden

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

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
        return host in self._allowed or _is_loopback(host)


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


def _is_loopback(host: str) -> bool:
    """Whether the host is this machine: browsers resolve ``localhost`` and its subdomains without asking DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
