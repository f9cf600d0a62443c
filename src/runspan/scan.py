"""A strict JSON scanner that finds where values begin and end, and keeps their own text; no I/O.

It accepts what RFC 8259 accepts and nothing else, at any depth, since it keeps its own stack. It builds no values:
the text between the boundaries it returns is the value, verbatim.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_SCALAR = re.compile(
    _STRING.pattern + r"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null", re.ASCII
)
_OPEN_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_STRUCTURE = re.compile(_STRING.pattern + r"|[{}\[\],\"]")
_WORD = re.compile(r"[^\s,:\[\]{}\"]{1,20}")


class ScanError(ValueError):
    """The text is not JSON. position counts characters from the start of the text."""

    def __init__(self, position: int, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.position = position
        self.expected = expected
        self.got = got


class Member(NamedTuple):
    """One member of an object: key decoded, both texts verbatim, positions in characters."""

    key: str
    key_text: str
    value_text: str
    position: int


class Element(NamedTuple):
    """One element of an array."""

    value_text: str
    position: int


def skip_space(text: str, position: int) -> int:
    """The position of the next character that is no JSON white space."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def end_of_value(text: str, position: int) -> int:
    """The position just past the value that starts at position; ScanError when there is none."""
    closers: list[str] = []
    while True:
        position = skip_space(text, position)
        character = text[position : position + 1]
        if character in ("{", "["):
            closer = "}" if character == "{" else "]"
            position = skip_space(text, position + 1)
            if text[position : position + 1] != closer:
                closers.append(closer)
                if closer == "}":
                    position = _after_colon(text, position)
                continue
            position += 1
        else:
            position = _end_of_scalar(text, position)
        while closers:
            position = skip_space(text, position)
            character = text[position : position + 1]
            if character == ",":
                position += 1
                if closers[-1] == "}":
                    position = _after_colon(text, skip_space(text, position))
                break
            if character != closers[-1]:
                raise _unexpected(text, position, f"',' or '{closers[-1]}'")
            closers.pop()
            position += 1
        else:
            return position


def members(text: str, position: int) -> Iterator[Member]:
    """The members of the object at position, in their order, repeated keys included."""
    position = skip_space(text, position + 1)
    if text[position : position + 1] == "}":
        return
    while True:
        start = _end_of_key(text, position)
        key_text = text[position:start]
        value = skip_space(text, _after_colon(text, position))
        end = end_of_value(text, value)
        yield Member(string_value(key_text), key_text, text[value:end], value)
        position = skip_space(text, end)
        if text[position : position + 1] == "}":
            return
        if text[position : position + 1] != ",":
            raise _unexpected(text, position, "',' or '}'")
        position = skip_space(text, position + 1)


def elements(text: str, position: int) -> Iterator[Element]:
    """The elements of the array at position, in their order."""
    position = skip_space(text, position + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        position = skip_space(text, position)
        end = end_of_value(text, position)
        yield Element(text[position:end], position)
        position = skip_space(text, end)
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            raise _unexpected(text, position, "',' or ']'")
        position += 1


def string_value(text: str) -> str:
    """The value of a JSON string's text; lone surrogates stay what they are."""
    value: str = json.loads(text)
    return value


def kind_of(text: str) -> str:
    """What a JSON text is, in the words of an error message."""
    names = {"{": "an object", "[": "an array", '"': "a string", "t": "true", "f": "false", "n": "null"}
    return names.get(text[:1], "a number")


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Line and column of a position, both from 1."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def place_of(text: str, position: int) -> str:
    """The member in which a position lies, as ``steps[2].input``: the envelope's members, not a payload's inside.

    The text before the position must be JSON as far as it goes.
    """
    path: list[str | int] = []
    expecting_key = False
    for match in _STRUCTURE.finditer(text, 0, position):
        mark = match.group()
        if mark == "{":
            path.append("")
            expecting_key = True
        elif mark == "[":
            path.append(0)
            expecting_key = False
        elif mark in "}]":
            path.pop()
            expecting_key = False
        elif mark == ",":
            last = path[-1]
            path[-1] = last + 1 if isinstance(last, int) else ""
            expecting_key = isinstance(last, str)
        elif mark == '"':
            break  # a string that does not end: what follows is inside it
        elif expecting_key:
            path[-1] = string_value(mark)
            expecting_key = False
    depth = 3 if path[:1] == ["steps"] else 1
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[:depth] if part != "")
    return place.removeprefix(".")


def _end_of_scalar(text: str, position: int) -> int:
    match = _SCALAR.match(text, position)
    if match is None:
        opened = _OPEN_STRING.match(text, position)
        if opened is not None:
            raise _unexpected(text, opened.end(), "the rest of a string, control characters escaped")
        raise _unexpected(text, position, "a JSON value")
    return match.end()


def _end_of_key(text: str, position: int) -> int:
    match = _STRING.match(text, position)
    if match is None:
        raise _unexpected(text, position, "a key in double quotes")
    return match.end()


def _after_colon(text: str, position: int) -> int:
    position = skip_space(text, _end_of_key(text, position))
    if text[position : position + 1] != ":":
        raise _unexpected(text, position, "':'")
    return position + 1


def _unexpected(text: str, position: int, expected: str) -> ScanError:
    if position >= len(text):
        return ScanError(position, expected, "the end of the text")
    word = _WORD.match(text, position)
    return ScanError(position, expected, repr(word.group() if word else text[position]))
