"""The lists in OpenTelemetry's variables, headers and resource attributes, read and checked; no I/O.

The values of headers are secrets, so no error quotes one.
https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote

from runspan.errors import SettingError

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_SCHEMES: Final = frozenset({"", "Bearer", "Basic"})

Headers = tuple[tuple[str, str], ...]
"""Names in lower case, each once, and values."""


def read_headers(where: str, text: str) -> list[tuple[str, str]]:
    """``key=value,key=value``, both percent-encoded, as pairs. SettingError tells the position of what is none.

    where: the variable that holds the text.
    """
    found = []
    for position, item in enumerate(text.split(","), start=1):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            got = f"none in item {position}"
            raise SettingError(where=where, expected="key=value, separated by commas", got=got)
        found.append((unquote(key.strip()), unquote(value.strip())))
    return found


def validate_headers(where: str, items: Iterable[tuple[str, str]]) -> Headers:
    """The headers, of a name that stands twice the last. SettingError when HTTP cannot carry a name or a value.

    where: what errors call the place.
    """
    checked: dict[str, str] = {}
    for key, value in items:
        if not _TOKEN.fullmatch(key):
            raise SettingError(where=where, expected="header names", got="a name with other characters")
        if not _VALUE.fullmatch(value):
            raise SettingError(where=f"{where}: {key}", expected="printable ASCII", got="other characters")
        checked[key.lower()] = value
    return tuple(checked.items())


def read_attributes(text: str) -> dict[str, str]:
    """``OTEL_RESOURCE_ATTRIBUTES``: ``key=value`` joined by commas, values percent-encoded. SettingError names a pair
    that is none.

    https://opentelemetry.io/docs/specs/otel/resource/sdk/#specifying-resource-information-via-an-environment-variable
    """
    validate_text("OTEL_RESOURCE_ATTRIBUTES", text)
    attributes: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingError(where="OTEL_RESOURCE_ATTRIBUTES", expected="key=value,key=value", got=repr(pair))
        attributes[key.strip()] = unquote(value.strip())
    return attributes


def validate_text(where: str, text: str) -> str:
    """The text. SettingError when UTF-8 cannot carry it: an environment variable or an argument may have any bytes.

    where: what errors call the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        hint = "its bytes are text in another encoding, or none"
        raise SettingError(where=where, expected="UTF-8", got=repr(text), hint=hint) from None
    return text


def basic_auth(user: str, password: str) -> tuple[str, str]:
    """The header that logs in with a user and a password."""
    return "authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def secret_parts(values: Iterable[str]) -> Sequence[str]:
    """What must appear in no message: the values and their parts, as in ``Bearer x``, longest first."""
    found = {part for value in values for part in (value, *value.split())}
    return sorted(found - _SCHEMES, key=len, reverse=True)
