"""Values of an engine as JSON text: exact where JSON has a word for them, else readable, and never an error."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from runspan.model import json_scanner as scan

_DEPTH: Final = 100
_SEPARATORS: Final = (",", ":")


class Payload(NamedTuple):
    """text: JSON, UTF-8. exact: JSON had a word for all of it."""

    text: bytes
    exact: bool = True

    @property
    def keys(self) -> frozenset[str] | None:
        """Of an object, its keys, else None."""
        if not self.text.startswith(b"{"):
            return None
        return frozenset([member.key for member in scan.members(self.text.decode(), 0)])


def payload(value: object) -> Payload:
    """The value as JSON, whatever its own code does. ``msgspec.Raw`` is ready JSON text, which is kept verbatim.

    Dataclasses, pydantic and msgspec models, dates, UUIDs, decimals, enums and sets become what msgspec makes of them;
    anything else becomes its ``repr``, and NaN its name as a string, and then the payload is not ``exact``.
    """
    try:
        return _ready(value) if type(value) is Raw else Payload(_dumps(value, _convert))
    except Exception:  # whatever a value's own code raises must not reach the engine
        return Payload(_readable(value), False)


def to_utf8_text(value: object) -> str:
    """Text that UTF-8 can carry."""
    text = value if type(value) is str else _abbreviated(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def members(values: Mapping[str, object], known: Iterable[str]) -> bytes:
    """The text of unknown members, ``"key":value`` joined by commas. ValueError when one has a known member's name, or
    two have the same, as ``1`` and ``"1"`` have: no reader could tell which of them counts."""
    named = [(to_utf8_text(key), value) for key, value in values.items()]
    names = Counter([name for name, _ in named])
    taken = sorted(names.keys() & set(known))
    if taken:
        raise ValueError(f"{', '.join(taken)}: set by a method of its own, so not among the extra members")
    twice = sorted([name for name, times in names.items() if times > 1])
    if twice:
        raise ValueError(f"{', '.join(twice)}: the name of two extra members")
    return b",".join([_dumps(name, repr) + b":" + payload(value).text for name, value in named])


def error_text(error: object, step_id: str | None = None, code: str = "") -> bytes:
    """The platform's error object ``{code, message, step}`` of an exception or a message; any other value as it is.

    The code is the exception's own attribute ``code`` when that is text, else its class's name.
    """
    # Of the class alone: an object may answer ``isinstance`` with code of its own.
    told: dict[str, object]
    if issubclass(type(error), BaseException):
        told = {"code": code or _own_code(error) or type(error).__name__, "message": _message_of(error)}
    elif issubclass(type(error), str):
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
        # ``json.loads`` would take UTF-16 and a byte order mark for JSON, which no reader of the document does.
        told = text.decode()
        is_json = scan.end_of_value(told, 0) == len(told)
    except ValueError:
        is_json = False
    return Payload(text) if is_json else Payload(_dumps(text.decode(errors="replace"), repr), False)


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
        return _dumps(_abbreviated(value), repr)


def _convert(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    return msgspec.to_builtins(value)


def _plain(value: Any, depth: int, above: set[int]) -> Any:
    """The value with everything that JSON cannot say made readable; what cannot be read costs only itself."""
    try:
        return _described(value, depth, above)
    except Exception:
        return _abbreviated(value)


def _described(value: Any, depth: int, above: set[int]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return _complete_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if depth == 0 or id(value) in above:
        return "…"
    above = above | {id(value)}
    if isinstance(value, Mapping):
        # Copied at once: another thread may be changing it.
        return {to_utf8_text(key): _plain(item, depth - 1, above) for key, item in list(value.items())}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1, above) for item in list(value)]
    return _plain(_convert(value), depth - 1, above)


def _complete_text(value: int) -> Any:
    """An integer, in hexadecimal text when it has more digits than Python writes."""
    try:
        int.__repr__(value)
    except ValueError:
        return hex(value)
    return value


def _own_code(error: object) -> str:
    try:
        own = getattr(error, "code", "")
        return own if isinstance(own, str) else ""
    except Exception:
        return ""


def _message_of(error: object) -> str:
    try:
        return to_utf8_text(str(error))
    except Exception:
        return ""


def _abbreviated(value: object) -> str:
    try:
        return to_utf8_text(str.__str__(value) if issubclass(type(value), str) else repr(value))
    except Exception:
        return f"<{type(value).__name__}>"
