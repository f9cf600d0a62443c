"""Whether a line that begins with ``{`` goes on with the open document before it, or is one of its own; no I/O.

Where each line is a document, one that was cut leaves brackets open, and the next document stands where JSON allows a
value. A document formatted over several lines looks the same at first. What follows tells them apart: whole documents
fill their lines, and nothing comes between them; values inside a document are followed by a comma or a bracket, or go
on over lines that begin otherwise.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[{}\[\]]', re.DOTALL)
_SPACE: Final = b" \t\r"
_AFTER_VALUE: Final = (b",", b"]", b"}")
_PAIRS: Final = {ord("}"): ord("{"), ord("]"): ord("[")}
_OPENING: Final = b"{["


class Doubt:
    """Judges by the lines from the doubtful one on. opened: the brackets that are open before it."""

    def __init__(self, opened: bytes) -> None:
        self._opened = bytearray(opened)
        self._allowed = True
        self._closed = False

    def line(self, text: bytes) -> bool | None:
        """Takes the next line, without its line break.

        True: the document goes on over these lines. False: it was cut before them. None: the next line will tell.
        """
        words = text.strip(_SPACE)
        if not words:
            return None
        if not text.startswith(b"{"):
            return words.startswith(_AFTER_VALUE) if self._closed else True
        return self._object(text) if self._allowed else False

    def _object(self, text: bytes) -> bool | None:
        opened, depth = self._opened, len(self._opened)
        for token in _TOKEN.finditer(text):
            byte = text[token.start()]
            if byte == ord('"'):
                if not token[1]:
                    return False  # no string goes on over a line break
            elif byte in _OPENING:
                opened.append(byte)
            elif opened.pop() != _PAIRS[byte]:
                return False
            elif len(opened) == depth:
                self._allowed, self._closed = False, True
                rest = text[token.end() :].strip(_SPACE)
                return rest.startswith(_AFTER_VALUE) if rest else None
        self._allowed, self._closed = allows_value(text.rstrip(_SPACE)[-1], opened[-1]), False
        return None


def allows_value(before: int, opened: int) -> bool:
    """Whether JSON allows a value after this byte, inside this bracket."""
    return before in b":[" or (before == ord(",") and opened == ord("["))


def left_open(line: bytes) -> bool:
    """Whether a line of NDJSON ends inside its object, though it ends with a bracket that closes one."""
    if line.count(b"{") <= line.count(b"}"):
        return False
    depth = 0
    for token in _TOKEN.finditer(line):
        byte = line[token.start()]
        if byte != ord('"'):
            depth += 1 if byte in _OPENING else -1
    return depth > 0
