"""Where a browser's request comes from, and under which names a server without keys answers at all; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runspan.errors import Forbidden, SettingError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


def is_from_here(environ: WSGIEnvironment, origin: str) -> bool:
    """Whether the browser says that a request was made by a page of this server. origin: of the public URL, or "".

    Browsers send ``Sec-Fetch-Site`` over TLS and to loopback, where ``none`` is a person's own doing, and ``Origin``
    with every POST. Without both it is no browser, and so has no user who could be tricked.
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
    """Who may come in where nobody needs a key: programs, and browsers that are on this server's own pages.

    A page of another site may not read what is here, for a browser keeps sites apart by their names. But its name may
    begin to lead to this machine once the page is there (DNS rebinding), and then only the ``Host`` that the browser
    sends still tells whose page is asking.

    allowed: names and addresses that a request may be sent to beside those of loopback, each without a port. origin: of
    the public URL, or ""; its host is allowed too. SettingError for what is no name.
    """

    def __init__(self, allowed: Iterable[str] = (), origin: str = "") -> None:
        host = urlsplit(origin).hostname
        self._allowed = {*map(_allowable, allowed), *([_plain(host)] if host else [])}
        self._origin = origin
        self._knows = lru_cache(maxsize=100)(self._look)  # it is asked with every request, mostly about the same one

    def check(self, environ: WSGIEnvironment, *, writes: bool) -> None:
        """Returns when the request may come in, else Forbidden. writes: whether it would change anything."""
        authority = environ.get("HTTP_HOST", "")
        if authority and not self._knows(authority):  # every browser sends one
            raise Forbidden(
                where="Host",
                expected="localhost, 127.0.0.1, [::1] or an allowed name",
                got=repr(authority[:100]),
                hint="a server without API keys answers to no other name: allow it with `runspan serve --allow-host "
                "NAME`, or make a key with `runspan keys create`",
            )
        if writes and not is_from_here(environ, self._origin):
            raise Forbidden(
                where="Origin",
                expected="a program, or a page of this server",
                got=repr(environ.get("HTTP_ORIGIN", "a page of another site")[:100]),
                hint="without API keys no other site may write: send it from a program, as `runspan export` does",
            )

    def _look(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = _plain(match[1])
        return name in self._allowed or _is_loopback(name)


def _allowable(host: str) -> str:
    """A name or an address as it is compared."""
    found = _AUTHORITY.fullmatch(f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host)
    if found is None or found[1] != found[0]:
        raise SettingError(
            where="allowed host",
            expected="a name or an address without a port, such as runs.example.com",
            got=repr(host),
        )
    return _plain(found[1])


def _plain(name: str) -> str:
    """Without brackets, case and the last dot; an address in the one form that all its spellings have."""
    name = name.strip("[]").lower().removesuffix(".")
    try:
        return str(ip_address(name))
    except ValueError:
        return name


def _is_loopback(name: str) -> bool:
    """Browsers and resolvers lead ``localhost`` and all names below it to this machine, whatever a DNS server says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
