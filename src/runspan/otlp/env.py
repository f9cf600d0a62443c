"""The lists in OpenTelemetry's variables, headers and resource attributes, parsed and validated; no I/O.

The values of headers are secrets, so no error quotes one.
https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import unquote

from runspan.errors import ConfigError

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_AUTH_SCHEMES: Final = frozenset({"", "Bearer", "Basic"})

Headers = tuple[tuple[str, str], ...]
"""Names in lower case, each once, and values."""


def read_headers(where: str, text: str) -> list[tuple[str, str]]:
    """Return the pairs of ``key=value,key=value``, both percent-encoded. ConfigError names the position of an error.

    where: The variable that holds the text.
    """
    return [(unquote(key), value) for key, value in _pairs(where, text)]


def validate_headers(where: str, items: Iterable[tuple[str, str]]) -> Headers:
    """Return the headers; of repeated names the last. ConfigError if HTTP cannot carry a name or a value.

    where: The source of the headers, for errors.
    """
    checked: dict[str, str] = {}
    for key, value in items:
        if not _NAME.fullmatch(key):
            raise ConfigError(where=where, expected="header names", got="a name with other characters")
        if not _VALUE.fullmatch(value):
            raise ConfigError(where=f"{where}: {key}", expected="printable ASCII", got="other characters")
        checked[key.lower()] = value
    return tuple(checked.items())


def read_attributes(text: str) -> dict[str, str]:
    """Return ``OTEL_RESOURCE_ATTRIBUTES``, ``key=value`` joined by commas with percent-encoded values.

    https://opentelemetry.io/docs/specs/otel/resource/sdk/#specifying-resource-information-via-an-environment-variable
    """
    return dict(_pairs("OTEL_RESOURCE_ATTRIBUTES", validate_text("OTEL_RESOURCE_ATTRIBUTES", text)))


def validate_text(where: str, text: str) -> str:
    """Return the text. ConfigError if UTF-8 cannot encode it: a variable or an argument may hold any bytes.

    where: The source of the text, for errors.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        hint = "its bytes are text in another encoding, or none"
        raise ConfigError(where=where, expected="UTF-8", got=repr(text), hint=hint) from None
    return text


def basic_auth(user: str, password: str) -> tuple[str, str]:
    """Return the header that authenticates a user with a password."""
    return "authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def secret_parts(values: Iterable[str]) -> Sequence[str]:
    """Return what no message may contain: the values and their parts, as in ``Bearer x``, longest first."""
    found = {part for value in values for part in (value, *value.split())}
    return sorted(found - _AUTH_SCHEMES, key=len, reverse=True)


def _pairs(where: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys as written and the decoded values of a comma-separated list."""
    for position, item in enumerate(text.split(","), start=1):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            got = f"none in item {position}"
            raise ConfigError(where=where, expected="key=value, separated by commas", got=got)
        yield key.strip(), unquote(value.strip())
