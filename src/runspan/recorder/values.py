"""Values of an engine as JSON text: exact where JSON has a word for them, else readable, and never an error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

_DEPTH: Final = 100
_SEPARATORS: Final = (",", ":")
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode


class Payload(NamedTuple):
    """text: JSON, UTF-8. keys: of an object, its keys, else None. exact: JSON had a word for all of it."""

    text: bytes
    keys: frozenset[str] | None = None
    exact: bool = True


def payload(value: object) -> Payload:
    """The value as JSON. ``msgspec.Raw`` is ready JSON text, which is kept verbatim.

    Dataclasses, pydantic and msgspec models, dates, UUIDs, decimals, enums and sets become what msgspec makes of them;
    anything else becomes its ``repr``, and NaN its name as a string, and then the payload is not ``exact``.
    """
    if type(value) is Raw:
        return _ready(value)
    try:
        text = _dumps(value, _convert)
        exact = True
    except Exception:  # whatever a value's own code raises must not reach the engine
        text = _readable(value)
        exact = False
    keys = frozenset(map(str, value)) if isinstance(value, Mapping) else None
    if keys is None and text.startswith(b"{"):
        keys = frozenset(_decode_members(text))
    return Payload(text, keys, exact)


def label(value: object) -> str:
    """Text that UTF-8 can carry."""
    text = value if type(value) is str else _shown(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def members(values: Mapping[str, object], known: Iterable[str]) -> bytes:
    """The text of unknown members, ``"key":value`` joined by commas. ValueError when one has a known member's name."""
    taken = sorted(set(known).intersection(values))
    if taken:
        raise ValueError(f"{', '.join(taken)}: set by a method of its own, so not among the extra members")
    return b",".join([_dumps(label(key), repr) + b":" + payload(value).text for key, value in values.items()])


def error_text(error: object, step_id: str | None = None, code: str = "") -> bytes:
    """The platform's error object ``{code, message, step}`` of an exception or a message; any other value as it is.

    The code is the exception's own attribute ``code`` when that is text, else its class's name.
    """
    if isinstance(error, BaseException):
        own = getattr(error, "code", None)
        told = {
            "code": code or (own if isinstance(own, str) and own else type(error).__name__),
            "message": _said(error),
        }
    elif isinstance(error, str):
        told = {"code": code or "ERROR", "message": error}
    else:
        return payload(error).text
    if step_id is not None:
        told["step"] = step_id
    return payload(told).text


def object_text(members: Mapping[str, bytes]) -> bytes:
    """A JSON object of members whose values are JSON texts already."""
    return b"{" + b",".join([_dumps(key, repr) + b":" + text for key, text in members.items()]) + b"}"


def _ready(raw: Raw) -> Payload:
    text = bytes(raw).strip(b" \t\r\n")
    try:
        text.decode()
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Payload(_dumps(text.decode(errors="replace"), repr), None, False)
    if not text.startswith(b"{"):
        return Payload(text)
    return Payload(text, frozenset(json.loads(text)))


def _refuse(name: str) -> None:
    raise ValueError(name)


def _dumps(value: object, default: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=_SEPARATORS, allow_nan=False, default=default)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A lone surrogate is legal in JSON as an escape only.
        return json.dumps(value, separators=_SEPARATORS, allow_nan=False, default=default).encode()


def _readable(value: object) -> bytes:
    try:
        return _dumps(_plain(value, _DEPTH, set()), repr)
    except Exception:
        return _dumps(_shown(value), repr)


def _convert(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    return msgspec.to_builtins(value)


def _plain(value: Any, depth: int, above: set[int]) -> Any:
    """The value with everything that JSON cannot say made readable."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return value if type(value) is int or math.isfinite(value) else repr(value)
    if depth == 0 or id(value) in above:
        return "…"
    above = above | {id(value)}
    if isinstance(value, Mapping):
        return {label(key): _plain(item, depth - 1, above) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1, above) for item in value]
    try:
        return _plain(_convert(value), depth - 1, above)
    except Exception:
        return _shown(value)


def _said(error: BaseException) -> str:
    try:
        return label(str(error))
    except Exception:
        return ""


def _shown(value: object) -> str:
    try:
        return label(repr(value))
    except Exception:
        return f"<{type(value).__name__}>"
