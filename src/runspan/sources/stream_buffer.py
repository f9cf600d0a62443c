"""A sliding window over a byte stream, and the scan that finds where a JSON value ends in it; no I/O.

Every byte is looked at once, or twice where a chunk ends inside a string, whatever the size of the chunks: the scan
keeps its state between them. What a document over the bound leaves in memory is two bytes.

Whether a line that begins with ``{`` goes on with the open document before it, or is one of its own; no I/O.

Where each line is a document, one that was cut leaves brackets open, and the next document stands where JSON allows a
value. A document formatted over several lines looks the same at first. What follows tells them apart: whole documents
fill their lines, and nothing comes between them; values inside a document are followed by a comma or a bracket, or go
on over lines that begin otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[{}\[\]]', re.DOTALL)
_BLANK: Final = b" \t\r"
_AFTER_VALUE: Final = (b",", b"]", b"}")
_PAIRS: Final = {ord("}"): ord("{"), ord("]"): ord("[")}
_OPENERS: Final = b"{["


class ContinuationDetector:
    """Judges by the lines from the doubtful one on. opened: the brackets that are open before it."""

    def __init__(self, opened: bytes) -> None:
        self._opened = bytearray(opened)
        self._allowed = True
        self._closed = False

    def line(self, text: bytes) -> bool | None:
        """Takes the next line, without its line break.

        True: the document goes on over these lines. False: it was cut before them. None: the next line will tell.
        """
        words = text.strip(_BLANK)
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
            elif byte in _OPENERS:
                opened.append(byte)
            elif opened.pop() != _PAIRS[byte]:
                return False
            elif len(opened) == depth:
                self._allowed, self._closed = False, True
                rest = text[token.end() :].strip(_BLANK)
                return rest.startswith(_AFTER_VALUE) if rest else None
        self._allowed, self._closed = allows_value(text.rstrip(_BLANK)[-1], opened[-1]), False
        return None


def allows_value(before: int, opened: int) -> bool:
    """Whether JSON allows a value after this byte, inside this bracket."""
    return before in b":[" or (before == ord(",") and opened == ord("["))


def has_unclosed_object(line: bytes) -> bool:
    """Whether a line of NDJSON ends inside its object, though it ends with a bracket that closes one."""
    if line.count(b"{") <= line.count(b"}"):
        return False
    depth = 0
    for token in _TOKEN.finditer(line):
        byte = line[token.start()]
        if byte != ord('"'):
            depth += 1 if byte in _OPENERS else -1
    return depth > 0


_SPACES = re.compile(rb"[ \t\r\n]*")
_SPACES_OF_LINE = re.compile(rb"[ \t\r]*")

_STRINGS = rb'(?:"[^"\\\n]*+"[^"{}\[\]]*+)*+'
_FLAT = rb'(?:(?<!\n)[{\[][^"{}\[\]]*+' + _STRINGS + rb'[}\]][^"{}\[\]]*+' + _STRINGS + rb")*+"
_PLAIN = re.compile(rb'[^"{}\[\]]*+' + _STRINGS + _FLAT)
"""Up to the next bracket or string that has to be looked at. Objects and arrays that hold only scalars close
themselves and are passed over, but for an object that begins a line: that may be the next document."""

_TOP = re.compile(rb'[^"{}\[\],]*+(?:"[^"\\\n]*+"[^"{}\[\],]*+)*+')
_IN_STRING = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')

_QUOTE, _BACKSLASH, _NEWLINE, _OPEN_OBJECT = b'"\\\n{'
_OPENING: Final = b"{["
_SPACE: Final = b" \t\r\n"
_EXCERPT: Final = 40
_FIRST_LINES: Final = 4096


class ScannedValue(NamedTuple):
    """What a scan took off the window.

    data: the text; empty when size is over the bound. ended: a bracket or separator ended it, not the end of the
    stream. open: it stopped inside brackets or a string.
    """

    data: bytes
    size: int
    ended: bool
    open: bool


class LineBatch(NamedTuple):
    """Whole lines without their line breaks.

    lost: the size of a line over the bound that stood before them, else 0. newline: 1 when each of the lines, the
    lost one too, had a line break, 0 for the last line of the stream that had none.
    """

    lost: int
    lines: list[bytes]
    newline: int


class _ValueScanner:
    """Where one value ends. Knows strings and brackets, and leaves every other question to the parser.

    A document ends after its closing bracket. One that was cut, or whose string was left open, also ends where the
    next document starts: where a line begins with ``{`` and JSON allows none. By_line it may start where JSON allows a
    value, too: there the scan stops in ``doubt``, until ``go_on``. An element of an array ends before the comma or
    bracket that follows it.
    """

    def __init__(self, *, element: bool = False, by_line: bool = False) -> None:
        self.position = 0 if element else 1
        self.doubt = False
        self._element = element
        self._by_line = by_line
        self._opened = bytearray(b"" if element else b"{")
        self._in_string = False

    @property
    def open(self) -> bool:
        return self._in_string or bool(self._opened)

    @property
    def opened(self) -> bytes:
        """The brackets that are open."""
        return bytes(self._opened)

    def go_on(self) -> None:
        """The document is one of several lines: what begins them is never in doubt again."""
        self.doubt = self._by_line = False

    def advance(self, buffer: bytearray) -> bool:
        """Go on to the end of the value, then True, or to the end of the buffer."""
        opened, end = self._opened, len(buffer)
        while self.position < end:
            if self._in_string:
                if self._string(buffer, end):
                    return True
                if self._in_string:
                    return False
            pattern = _PLAIN if opened or not self._element else _TOP
            position = _end(pattern, buffer, self.position)
            self.position = position
            if position == end:
                return False
            byte = buffer[position]
            if byte == _QUOTE:
                self._in_string = True
            elif byte in _OPENING:
                if not self._element and self._next_document(buffer, position):
                    return True
                if self.doubt:
                    return False
                opened.append(byte)
            elif opened:
                opened.pop()
                if not opened and not self._element:
                    self.position += 1
                    return True
            elif byte != ord("}"):
                return True
            self.position += 1
        return False

    def _string(self, buffer: bytearray, end: int) -> bool:
        """Go on to the end of the string, or of the buffer; True where the next document starts instead."""
        position = self.position
        while True:
            position = _end(_IN_STRING, buffer, position)
            if position < end and buffer[position] == _QUOTE:
                self._in_string = False
                self.position = position + 1
                return False
            if position + 1 >= end:
                # A backslash or a line break that ends the buffer is looked at again with what follows it.
                self.position = position
                return False
            if buffer[position] == _NEWLINE and buffer[position + 1] == _OPEN_OBJECT and not self._element:
                self.position = position + 1
                return True
            position += 1

    def _next_document(self, buffer: bytearray, position: int) -> bool:
        if buffer[position] != _OPEN_OBJECT or buffer[position - 1] != _NEWLINE:
            return False
        if not allows_value(_last_significant(buffer, position), self._opened[-1]):
            return True
        self.doubt = self._by_line
        return False


class StreamBuffer:
    """The part of a stream that is being looked at.

    buffer: the bytes not yet taken. offset: how many were taken before them. line: the number of the line at the front.
    at_line_start: only white space stands before the front on its line.
    """

    def __init__(self, chunks: Iterable[bytes], max_document: int) -> None:
        self.buffer = bytearray()
        self.offset = 0
        self.line = 1
        self.at_line_start = True
        self.max_document = max_document
        self._chunks = iter(chunks)
        self._tail: list[bytes] = []
        self._lines_until = 0

    @property
    def judged(self) -> bool:
        """Whether the front was looked at already, and each line found to be a document: all of it is in the buffer."""
        return self.offset < self._lines_until

    def more(self) -> bool:
        """Take in another chunk; False at the end of the stream."""
        for chunk in self._chunks:
            if chunk:
                self.buffer += chunk
                return True
        return False

    def drop(self, size: int) -> None:
        """Take bytes off the front."""
        self.line += self.buffer.count(b"\n", 0, size)
        self.offset += size
        del self.buffer[:size]

    def skip_space(self) -> bool:
        """Drop white space; False at the end of the stream."""
        line = self.line
        self.run(_SPACES)
        self.at_line_start = self.at_line_start or self.line > line
        return bool(self.buffer)

    def line_ends(self) -> bool:
        """Drop white space and a line break; False when something else stands on the line."""
        self.run(_SPACES_OF_LINE)
        if self.buffer and self.buffer[0] != _NEWLINE:
            return False
        self.drop(len(self.buffer[:1]))
        self.at_line_start = True
        return True

    def run(self, pattern: re.Pattern[bytes]) -> bytes:
        """Drop what matches a repeated byte class, over chunks, and return how it begins."""
        excerpt = b""
        while True:
            end = _end(pattern, self.buffer, 0)
            excerpt += self.buffer[: min(end, _EXCERPT - len(excerpt))]
            self.drop(end)
            if self.buffer or not self.more():
                return excerpt

    def document(self, *, by_line: bool) -> ScannedValue:
        """Take the object at the front. by_line: documents before it filled a line each."""
        return self._take(_ValueScanner(by_line=by_line))

    def element(self) -> ScannedValue:
        """Take the element of an array at the front, without the separator that follows."""
        return self._take(_ValueScanner(element=True))

    def _take(self, scan: _ValueScanner) -> ScannedValue:
        lost = 0
        while not (ended := scan.advance(self.buffer)):
            if scan.doubt:
                if not self._goes_on(scan, lost):
                    ended = True
                    break
                scan.go_on()
                continue
            if lost + scan.position > self.max_document:
                lost += self._forget(scan)
            if not self.more():
                scan.position = len(self.buffer)
                break
        end = scan.position
        size = lost + end
        with memoryview(self.buffer) as view:
            data = b"" if size > self.max_document else bytes(view[:end])
        self.at_line_start = self.buffer[end - 1 : end] == b"\n"
        self.drop(end)
        return ScannedValue(data, size, ended, scan.open)

    def _goes_on(self, scan: _ValueScanner, lost: int) -> bool:
        """Whether the document goes on with the line where its scan is in doubt.

        The answer holds for every line that was looked at for it, so that each is looked at once.
        """
        if self.offset + scan.position < self._lines_until:
            return False  # a line that was judged with an earlier one
        size, text = lost + scan.position, self.buffer[: scan.position]
        if size > self.max_document or text.strip(_SPACE).count(b"\n"):
            return True  # a document of several lines already, or one that nobody wants whole
        doubt, start = ContinuationDetector(scan.opened), scan.position
        searched = start
        while True:
            end = self.buffer.find(b"\n", searched)
            if end < 0:
                searched = len(self.buffer)
                if searched <= self.max_document and self._more_or_later():
                    continue
                end = searched
            if end > self.max_document:
                self._lines_until = self.offset + self.max_document
                return False
            verdict = doubt.line(bytes(self.buffer[start:end]))
            if verdict is None and end < len(self.buffer):
                start = searched = end + 1
                continue
            if not verdict:
                self._lines_until = self.offset + end
            return bool(verdict)

    def _more_or_later(self) -> bool:
        """As ``more``; what it raises is raised by the next one: documents may have to be handed out first."""
        try:
            return self.more()
        except Exception as error:  # whatever the chunks raise
            self._chunks = _raising(error)
            return False

    def _forget(self, scan: _ValueScanner) -> int:
        """Drop what was scanned, but for the two bytes that tell whether a ``{`` may follow."""
        size = scan.position - 2
        if size <= 0:
            return 0
        kept = bytes((_last_significant(self.buffer, scan.position), self.buffer[scan.position - 1]))
        self.drop(scan.position)
        self.buffer[:0] = kept
        self.offset -= len(kept)
        self.line -= kept.count(b"\n")
        scan.position = len(kept)
        return size

    def lines(self) -> Iterator[LineBatch]:
        """The rest of the stream, by lines. ``restore`` ends it."""
        tail, size = self._tail, 0
        for chunk in self._rest():
            lines = chunk.split(b"\n")
            if len(lines) > 1:
                tail.append(lines[0])
                size += len(lines[0])
                over = size > self.max_document
                lines[0] = b"" if over else b"".join(tail)
                tail[:] = [lines.pop()]
                yield LineBatch(size, lines[1:], 1) if over else LineBatch(0, lines, 1)
                size = len(tail[0])
            else:
                tail.append(chunk)
                size += len(chunk)
                if size > self.max_document:
                    tail.clear()
        if size:
            over = size > self.max_document
            last = b"" if over else b"".join(tail)
            tail.clear()
            yield LineBatch(size, [], 0) if over else LineBatch(0, [last], 0)

    def _rest(self) -> Iterator[bytes]:
        """The rest of the stream in chunks: what the buffer holds in growing ones, for much of it may be restored."""
        size = _FIRST_LINES
        while self.buffer:
            chunk = bytes(self.buffer[:size])
            del self.buffer[:size]
            size *= 2
            yield chunk
        for chunk in self._chunks:  # ``yield from`` would close the chunks when the lines end early
            yield chunk

    def restore(self, lines: LineBatch, index: int, *, offset: int, line: int) -> None:
        """Put the lines from index on back to the front, with what was read after them."""
        self.buffer[:0] = b"\n".join(lines.lines[index:]) + b"\n" * lines.newline + b"".join(self._tail)
        self._tail.clear()
        self.offset = offset
        self.line = line
        self.at_line_start = True


def _raising(error: Exception) -> Iterator[bytes]:
    raise error
    yield b""


def _last_significant(buffer: bytearray, end: int) -> int:
    """The last byte before end that is no white space."""
    size = 16
    while True:
        start = max(0, end - size)
        text = buffer[start:end].rstrip(_SPACE)
        if text or start == 0:
            return text[-1] if text else buffer[0]
        size *= 4


def _end(pattern: re.Pattern[bytes], buffer: bytearray, position: int) -> int:
    match = pattern.match(buffer, position)
    return match.end() if match else position
