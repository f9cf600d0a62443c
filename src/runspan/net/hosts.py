"""The hosts of URLs, held to what a client can look up, so that a wrong one is told before anything is sent; no I/O."""

from __future__ import annotations

import re
from typing import Final

import httpx

from runspan.errors import SettingError

_LABEL: Final = re.compile(r"[0-9A-Za-z_-]{1,63}")
_MOST: Final = 253
"""Characters of a name that DNS carries."""


def check_host(where: str, url: str) -> None:
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
