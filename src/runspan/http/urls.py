"""The hosts of URLs, held to what a client can look up, so that a wrong one is told before anything is sent; no I/O.

Words of others for our messages: on one line, bounded, without the secrets that they may repeat; no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import httpx

from runspan.errors import SettingError

_LABEL: Final = re.compile(r"[0-9A-Za-z_-]{1,63}")
_MOST: Final = 253
"""Characters of a name that DNS carries."""


def validate_host(where: str, url: str) -> None:
    """SettingError when no client could look up the host of a URL, now or later. where: what errors call the place.

    The system's own look-up raises no network error for these, and an HTTP client passes that on as it is. What names
    nothing today may do so tomorrow, and is no error here.
    """
    try:
        parts = httpx.URL(url)
        # A request asks for both: an international name has to be one in either form.
        _, host = parts.host, parts.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise SettingError(where=where, expected="a URL", got="one that cannot be read") from None
    if ":" in host:
        return  # an address of IPv6, which whoever read the URL has checked
    labels = host.removesuffix(".").split(".")
    if len(host) > _MOST or not all(map(_LABEL.fullmatch, labels)):
        raise SettingError(
            where=where,
            expected="the name or address of a host",
            got=repr(host if len(host) <= _MOST else f"{host[:60]}…"),
            hint="a part of it is empty: is a variable not set?" if not all(labels) else "",
        )


MAX_WORDS: Final = 300
"""Characters of a server's own words in a message."""

_SHORTEST_SECRET: Final = 4


def sanitize_message(text: str, secrets: Iterable[str] = ()) -> str:
    """A server's words on one line, without control characters and without the secrets it may have echoed."""
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_WORDS]).split())
    return line if len(line) <= MAX_WORDS else line[: MAX_WORDS - 1] + "…"


def redact_url(url: str) -> str:
    """The URL as others may see it: without a query, which is where signed URLs carry their secret, and a login."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    place = rest.partition("?")[0].partition("#")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
