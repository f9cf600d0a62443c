"""A strict JSON scanner that returns the boundaries of values instead of decoding them; no I/O.

The scanner accepts exactly the grammar of RFC 8259, at any depth, since it keeps its own stack. The text between the
returned boundaries is the value, verbatim. Consecutive tokens of the same kind are one match of a regular expression,
so that ten megabytes of brackets take no longer than ten megabytes of words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple

_WS = r"[ \t\n\r]*+"
_SPACE = re.compile(_WS)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_SCALAR = re.compile(
    _STRING.pattern + r"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null", re.ASCII
)
_OPEN_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_WORD = re.compile(r"[^\s,:\[\]{}\"]{1,20}")

_KEY = re.compile(rf"({_STRING.pattern}){_WS}:{_WS}")
_MEMBER = rf"{_STRING.pattern}{_WS}:{_WS}"
"""A key and its colon."""


def _or_container_of(value: str) -> str:
    """Return a pattern that matches the value, or an array or object of such values."""
    array = rf"\[{_WS}(?:{value}{_WS}(?:,{_WS}{value}{_WS})*+)?+\]"
    members = rf"\{{{_WS}(?:{_MEMBER}{value}{_WS}(?:,{_WS}{_MEMBER}{value}{_WS})*+)?+\}}"
    return f"(?:{value}|{array}|{members})"


_SHALLOW_VALUE = _or_container_of(_or_container_of(f"(?:{_SCALAR.pattern})"))
_OPENERS = re.compile(rf"(?:\[{_WS}|\{{{_WS}{_MEMBER})++")
_OPENER = re.compile(rf"([\[{{]){_WS}(?:{_MEMBER})?+")
_CLOSERS = re.compile(rf"(?:[\]}}]{_WS})++")
_CLOSER = re.compile(r"[\]}]")
_CLOSER_OF = {"[": "]", "{": "}"}


# These are compiled when they are needed first, since that takes a tenth of the start of every command.


@cache
def _shallow() -> re.Pattern[str]:
    return re.compile(_SHALLOW_VALUE, re.ASCII)


@cache
def _more(is_array: bool) -> re.Pattern[str]:
    """Return the pattern of further elements of an array, or members of an object, each with the comma before it."""
    item = _SHALLOW_VALUE if is_array else _MEMBER + _SHALLOW_VALUE
    return re.compile(rf"(?:,{_WS}{item}{_WS})*+", re.ASCII)


class ScanError(ValueError):
    """The text is not JSON."""

    def __init__(self, position: int, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.position = position
        """Characters from the start of the text."""
        self.expected = expected
        self.got = got


class Member(NamedTuple):
    """One member of an object: the decoded key, both texts verbatim, and the position of the value in characters."""

    key: str
    key_text: str
    value_text: str
    position: int


class Element(NamedTuple):
    """One element of an array: its text verbatim and its position in characters."""

    value_text: str
    position: int


def skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is not JSON white space."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def is_json_value(text: bytes) -> bool:
    """Return whether the text is exactly one JSON value in UTF-8, without surrounding white space."""
    if text.isdigit() and (text[0] != 0x30 or len(text) == 1):
        return True
    try:
        characters = text.decode()
        return not characters[:1].isspace() and end_of_value(characters, 0) == len(characters)
    except (UnicodeDecodeError, ScanError):
        return False


def end_of_value(text: str, position: int) -> int:
    """Return the position just past the value that starts at ``position``. Raises ScanError."""
    position = skip_space(text, position)
    shallow = _shallow().match(text, position)
    if shallow is not None:
        return shallow.end()
    closers: list[str] = []
    """The closing characters of the open arrays and objects, innermost last."""
    while True:
        if shallow is None:
            position = _open(text, position, closers)
            is_empty = closers[-1] == "]" and text.startswith("]", position)
        else:
            position = shallow.end()
        if shallow is not None or is_empty:
            position = _after_value(text, position, closers)
            if not closers:
                return position
        position = skip_space(text, position)
        shallow = _shallow().match(text, position)


def _open(text: str, position: int, closers: list[str]) -> int:
    """Return the position past the opening brackets, and braces with their first keys, that start here."""
    openers = _OPENERS.match(text, position)
    if openers is None:
        if text.startswith("{", position):
            raise _not_a_member(text, skip_space(text, position + 1))
        raise _not_a_value(text, position)
    end = openers.end()
    closers += map(_CLOSER_OF.__getitem__, _OPENER.findall(text, position, end))
    return end


def _after_value(text: str, position: int, closers: list[str]) -> int:
    """Return where the value after this one begins, or the position past the last closing bracket."""
    while closers:
        position = skip_space(text, position)
        is_array = closers[-1] == "]"
        if text.startswith(",", position):
            more = _more(is_array).match(text, position)
            if more is None or more.end() == position:
                position = skip_space(text, position + 1)
                return position if is_array else _match_key(text, position).end()
            position = more.end()
        else:
            position = _close(text, position, closers)
    return position


def _close(text: str, position: int, closers: list[str]) -> int:
    """Return the position past the closing brackets and braces that start here."""
    run = _CLOSERS.match(text, position)
    found = [] if run is None else _CLOSER.findall(text, position, run.end())
    if run is not None and len(found) < len(closers) and found == closers[: -len(found) - 1 : -1]:
        del closers[-len(found) :]
        return run.end()
    if found[: len(closers)] == closers[::-1]:
        last = next(islice(_CLOSER.finditer(text, position), len(closers) - 1, None))
        closers.clear()
        return last.end()
    while text.startswith(closers[-1], position):
        closers.pop()
        position = skip_space(text, position + 1)
    raise _unexpected(text, position, f"',' or '{closers[-1]}'")


def members(text: str, position: int) -> Iterator[Member]:
    """Yield the members of the object at ``position`` in order, including repeated keys."""
    start: int | None = skip_space(text, position + 1)
    if text.startswith("}", start):
        return
    while start is not None:
        key = _match_key(text, start)
        end = end_of_value(text, key.end())
        yield Member(string_value(key[1]), key[1], text[key.end() : end], key.end())
        start = _next_item(text, end, "}")


def elements(text: str, position: int) -> Iterator[Element]:
    """Yield the elements of the array at ``position`` in order."""
    start: int | None = skip_space(text, position + 1)
    if text.startswith("]", start):
        return
    while start is not None:
        end = end_of_value(text, start)
        yield Element(text[start:end], start)
        start = _next_item(text, end, "]")


def _next_item(text: str, position: int, closer: str) -> int | None:
    """Return where the item after this one begins; None after the last one."""
    position = skip_space(text, position)
    if text.startswith(closer, position):
        return None
    if not text.startswith(",", position):
        raise _unexpected(text, position, f"',' or '{closer}'")
    return skip_space(text, position + 1)


def string_value(text: str) -> str:
    """Return the value of a JSON string's text. Lone surrogates are kept."""
    if "\\" not in text:
        return text[1:-1]
    value: str = json.loads(text)
    return value


def json_type(text: str) -> str:
    """Return the type of a JSON text as error messages call it."""
    names = {"{": "an object", "[": "an array", '"': "a string", "t": "true", "f": "false", "n": "null"}
    return names.get(text[:1], "a number")


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Return line and column of a position, both counted from 1."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def path_at(text: str, position: int) -> str:
    """Return the path of the member that contains a position, such as ``steps[2].input``.

    Paths end at the members of the run and its steps and do not descend into payloads. The text before the position
    must be a prefix of valid JSON.
    """
    path, start = "", skip_space(text, 0)
    for depth in range(3):
        if start >= position or text[start : start + 1] not in ("{", "["):
            break
        label, start = _child_at(text, start, position)
        path += label
        if depth == 0 and label != ".steps":
            break
    return path.removeprefix(".")


def _child_at(text: str, start: int, position: int) -> tuple[str, int]:
    """Return the child that contains a position, as ``.key`` or ``[2]``, and where its value begins.

    The second item is the position itself when it is not inside a value.
    """
    is_object, index = text[start] == "{", 0
    while True:
        label, start = f"[{index}]", skip_space(text, start + 1)
        if is_object:
            key = _STRING.match(text, start)
            if key is None or key.end() > position:
                return "", position
            name = string_value(key.group())
            label = f".{name}" if name else ""
            start = skip_space(text, key.end())
            if start >= position or text[start] != ":":
                return label, position
            start = skip_space(text, start + 1)
        try:
            end = end_of_value(text, start)
        except ScanError:
            return label, start
        if end > position:
            return label, start
        start = skip_space(text, end)
        if start >= position or text[start] != ",":
            return label, position
        index += 1


def _match_key(text: str, position: int) -> re.Match[str]:
    key = _KEY.match(text, position)
    if key is None:
        raise _not_a_member(text, position)
    return key


def _not_a_value(text: str, position: int) -> ScanError:
    opened = _OPEN_STRING.match(text, position)
    if opened is not None:
        return _unexpected(text, opened.end(), "the rest of a string, control characters escaped")
    return _unexpected(text, position, "a JSON value")


def _not_a_member(text: str, position: int) -> ScanError:
    key = _STRING.match(text, position)
    if key is None:
        return _unexpected(text, position, "a key in double quotes")
    return _unexpected(text, skip_space(text, key.end()), "':'")


def _unexpected(text: str, position: int, expected: str) -> ScanError:
    if position >= len(text):
        return ScanError(position, expected, "the end of the text")
    word = _WORD.match(text, position)
    return ScanError(position, expected, repr(word.group() if word else text[position]))
