"""Serialize any value as JSON, without ever raising: exactly where JSON can represent it, else as readable text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runspan.model import json_scanner

_DEPTH: Final = 100
_SEPARATORS: Final = (",", ":")
_STEP: Final = "_runspan_step"
"""The attribute of an exception with the step that it left last."""
_MAX_GROUPED: Final = 10
"""Exceptions of a group that are listed."""


class Payload(NamedTuple):
    """A serialized value."""

    text: bytes
    """JSON in UTF-8."""
    exact: bool = True
    """Whether JSON can represent all of the value."""


def payload(value: object) -> Payload:
    """Return the value as JSON, whatever its own code raises. ``msgspec.Raw`` is JSON text already, and kept verbatim.

    Dataclasses, pydantic and msgspec models, dates, UUIDs, decimals, enums and sets are converted as msgspec does.
    Anything else becomes its ``repr``, and NaN its name as a string; the payload is not ``exact`` then.
    """
    try:
        return _from_raw(value) if type(value) is Raw else Payload(_dumps(value, _convert))
    except Exception:  # an error in a value's own code must not reach the engine
        return Payload(_dumps_inexact(value), False)


def to_utf8_text(value: object) -> str:
    """Return the value as text that UTF-8 can encode."""
    text = value if type(value) is str else _repr(value)
    return text.encode("utf-8", "replace").decode()


def optional_text(value: str | None) -> str | UnsetType:
    """Return the text as ``to_utf8_text`` does, and UNSET for None."""
    return UNSET if value is None else to_utf8_text(value)


def members(values: Mapping[str, object], known: Iterable[str]) -> bytes:
    """Return the text of extra members, ``"key":value`` joined by commas.

    known: names that are set otherwise.

    ValueError when a name is known, or when two are the same, as ``1`` and ``"1"`` are: JSON readers disagree on which
    of them counts.
    """
    pairs = [(to_utf8_text(key), value) for key, value in values.items()]
    counts = Counter([name for name, _ in pairs])
    reserved = sorted(counts.keys() & set(known))
    if reserved:
        raise ValueError(f"{', '.join(reserved)}: not an extra member, there is a method or an argument for it")
    duplicates = sorted([name for name, count in counts.items() if count > 1])
    if duplicates:
        raise ValueError(f"{', '.join(duplicates)}: the name of two extra members")
    return b",".join([_dumps(name, repr) + b":" + payload(value).text for name, value in pairs])


def error_text(error: object, run_id: str, step_id: str | None = None, *, code: str = "") -> bytes:
    """Return the platform's error object ``{code, message, step}`` for an exception or a message, or any other value
    unchanged.

    step_id: the step that fails with the error; None for an error of the run, whose ``step`` is the one that the
    exception has left, of an exception group the first one that one of its exceptions has left. The message about a
    group lists its exceptions.
    code: takes precedence over the exception's attribute ``code``, if that is text, and the name of its class.
    """
    # ``isinstance`` would run code of the value's own, in a property ``__class__``.
    members: dict[str, object]
    if issubclass(type(error), BaseException):
        message, step = _message_of(error), ""
        for each in _grouped(error):
            left = step_left_by(each, run_id)
            step = step or left
            text = ": ".join(filter(None, (type(each).__name__, _message_of(each))))
            message = f"{message}; {text}" + (f" (step {left})" if left else "")
        members = {"code": code or _code_of(error) or type(error).__name__, "message": message}
        step_id = step_id or step or step_left_by(error, run_id) or None
    elif issubclass(type(error), str):
        members = {"code": code or "ERROR", "message": error}
    else:
        return payload(error).text
    if step_id is not None:
        members["step"] = step_id
    return payload(members).text


def note_step(error: object, run_id: str, step_id: str) -> None:
    """Note on an exception that it leaves a step, for ``step_left_by``; nothing on any other value."""
    if not issubclass(type(error), BaseException):
        return
    with suppress(Exception):  # it may have no room for attributes
        # Not ``setattr``: a frozen class has a ``__setattr__`` of its own, which raises.
        BaseException.__setattr__(error, _STEP, (run_id, step_id))


def step_left_by(error: object, run_id: str) -> str:
    """Return the id of the run's step that the exception left last, or ""."""
    with suppress(Exception):
        noted_run_id, step_id = object.__getattribute__(error, _STEP)
        if noted_run_id == run_id:
            return str(step_id)
    return ""


def _grouped(error: object) -> list[BaseException]:
    """Return the first exceptions of a group, also of the groups in it, and none for any other exception."""
    found: list[BaseException] = []
    with suppress(Exception):
        groups = [error]
        while groups and len(found) < _MAX_GROUPED:
            group = groups.pop(0)
            for each in group.exceptions if isinstance(group, BaseExceptionGroup) else ():
                (groups if isinstance(each, BaseExceptionGroup) else found).append(each)
    return found[:_MAX_GROUPED]


def object_text(members: Mapping[str, bytes]) -> bytes:
    """Return a JSON object, given its values as JSON texts."""
    return b"{" + b",".join([_dumps(key, repr) + b":" + text for key, text in members.items()]) + b"}"


def object_keys(text: bytes) -> frozenset[str] | None:
    """Return the keys of a JSON object, None for any other value."""
    if not text.startswith(b"{"):
        return None
    return frozenset([member.key for member in json_scanner.members(text.decode(), 0)])


def _from_raw(raw: Raw) -> Payload:
    text = bytes(raw).strip(b" \t\r\n")
    return (
        Payload(text)
        if json_scanner.is_json_value(text)
        else Payload(_dumps(text.decode(errors="replace"), repr), False)
    )


def _dumps(value: object, default: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=_SEPARATORS, allow_nan=False, default=default)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # JSON allows a lone surrogate only as an escape.
        return json.dumps(value, separators=_SEPARATORS, allow_nan=False, default=default).encode()


def _dumps_inexact(value: object) -> bytes:
    try:
        return _dumps(_plain(value, _DEPTH, set()), repr)
    except Exception:
        return _dumps(_repr(value), repr)


def _convert(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    return msgspec.to_builtins(value)


def _plain(value: Any, depth: int, above: set[int]) -> Any:
    """Return the value with everything that JSON cannot represent replaced by text. An error affects only one value."""
    try:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if depth == 0 or id(value) in above:
            return "…"
        above = above | {id(value)}
        if isinstance(value, Mapping):
            # Copied at once, because another thread may change it.
            return {to_utf8_text(key): _plain(item, depth - 1, above) for key, item in list(value.items())}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth - 1, above) for item in list(value)]
        return _plain(_convert(value), depth - 1, above)
    except Exception:
        return _repr(value)


def _integer(value: int) -> Any:
    """Return an integer, or hexadecimal text when it has more digits than Python converts."""
    try:
        int.__repr__(value)
    except ValueError:
        return hex(value)
    return value


def _code_of(error: object) -> str:
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


def _repr(value: object) -> str:
    try:
        return to_utf8_text(str.__str__(value) if issubclass(type(value), str) else repr(value))
    except Exception:
        return f"<{type(value).__name__}>"
