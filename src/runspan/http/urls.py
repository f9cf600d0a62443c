"""URLs validated before the first request, and messages without the secrets that URLs and servers repeat; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpx

from runspan.errors import ConfigError

MAX_MESSAGE: Final = 300
"""Characters of a server's own text in a message."""

_MIN_SECRET: Final = 4
_MAX_HOST: Final = 253
"""Characters of a name that DNS carries."""

_LABEL: Final = re.compile(r"[0-9A-Za-z_-]{1,63}")
_AFTER_AUTHORITY: Final = re.compile(r"[/?#\\]")


def parse_url(where: str, text: str, expected: str) -> SplitResult:
    """Return the parts of an ``http`` or ``https`` URL whose host a client can look up; a login is allowed.

    where: The option or variable that holds the URL, for errors.
    expected: The form of the URL, for errors.

    Raises ConfigError, without the URL's login and query.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ConfigError(where=where, expected=expected, got="a URL that cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(where=where, expected=expected, got=repr(redact_url(text)))
    _validate_host(where, text, expected)
    return parts


def parse_base_url(where: str, text: str, expected: str, *, login_hint: str, query_hint: str = "") -> str:
    """Return a URL to which paths are appended: normalized, without a login, query, fragment and final slash.

    login_hint, query_hint: Where a login or a secret belongs instead.
    """
    refuse_login(where, text, login_hint)
    parts = parse_url(where, text, expected)
    if parts.query or parts.fragment:
        got = f"{redact_url(text)!r} with a query or fragment"
        raise ConfigError(where=where, expected=expected, got=got, hint=query_hint)
    return str(httpx.URL(parts.geturl())).rstrip("/")


def refuse_login(where: str, text: str, hint: str) -> None:
    """Raise ConfigError if a URL, with or without a scheme, holds a login: other users can see a command line."""
    authority = _AFTER_AUTHORITY.split(text.partition("://")[2] or text)[0]
    if "@" in authority:
        raise ConfigError(where=where, expected="a URL without a login", got="one with it", hint=hint)


def _validate_host(where: str, url: str, expected: str) -> None:
    """Raise ConfigError if no client could ever look up the host of a URL.

    The system's resolver raises no network error for such a host, and an HTTP client passes that on. A well-formed name
    that does not exist today may exist tomorrow, so it is no error here.
    """
    try:
        parts = httpx.URL(url)
        # A request needs both, so an international name has to be valid in either form.
        _, host = parts.host, parts.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise ConfigError(where=where, expected=expected, got="a URL that cannot be read") from None
    if ":" in host:
        return  # an IPv6 address, which urlsplit has validated
    labels = host.removesuffix(".").split(".")
    if len(host) > _MAX_HOST or not all(map(_LABEL.fullmatch, labels)):
        raise ConfigError(
            where=where,
            expected="the name or address of a host",
            got=repr(host if len(host) <= _MAX_HOST else f"{host[:60]}…"),
            hint="a part of it is empty: is a variable not set?" if not all(labels) else "",
        )


def redact_url(url: str) -> str:
    """Return the URL without its login and its query, where signed URLs carry their secret."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    bare = rest.partition("?")[0].partition("#")[0]
    host, slash, path = bare.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def sanitize_message(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a server's text on one line, bounded, without control characters and without secrets that it echoes."""
    for secret in secrets:
        if len(secret) >= _MIN_SECRET:
            text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_MESSAGE]).split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"
