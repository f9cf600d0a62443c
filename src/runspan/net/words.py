"""Words of others for our messages: on one line, bounded, without the secrets that they may repeat; no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_WORDS: Final = 300
"""Characters of a server's own words in a message."""

_SHORTEST_SECRET: Final = 4


def tidy(text: str, secrets: Iterable[str] = ()) -> str:
    """A server's words on one line, without control characters and without the secrets it may have echoed."""
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_WORDS]).split())
    return line if len(line) <= MAX_WORDS else line[: MAX_WORDS - 1] + "…"


def shown_url(url: str) -> str:
    """The URL as others may see it: without a query, which is where signed URLs carry their secret, and a login."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    place = rest.partition("?")[0].partition("#")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
