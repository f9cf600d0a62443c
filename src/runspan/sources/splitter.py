"""Split the byte stream of a file into its run documents, in one pass and bounded memory; no I/O.

The framing follows from what is in the stream, never from its name:

* ``[`` begins an array of documents.
* ``{`` begins a document, which runs to its closing bracket, over as many lines as that takes. Documents follow each
  other with or without white space between them.
* Once a document has filled its line, the stream is read as NDJSON: a line with as many ``{`` as ``}`` is a document of
  its own. Only a line that opens an object and does not close it, or that is ``[`` alone, goes on over the next lines.

A broken document costs no other one:

* An object that is never closed ends before the next line that begins with ``{``. There the next document is looked
  for. An object is known not to be closed when the stream ends inside it, or when a line begins with ``{`` where JSON
  allows no value.
* If ``{`` is all there is on its first line, the object was formatted over several lines. A line that begins with ``{``
  then belongs to it wherever JSON allows a value, so that no step is taken for a run.

The splitter does not validate JSON: broken text is handed on, and the parser says where it breaks. Where there is no
text to hand on (too large, not UTF-8, other text between documents) the piece carries the error instead.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from runspan.errors import DocumentError

MAX_DOCUMENT: Final = 256 << 20
"""The default limit of one document, in bytes."""

_EXCERPT: Final = 40
_FIRST_LINES: Final = 4096
"""Bytes of lines that are taken at first, and then twice as many each time: what follows an open line goes back."""

_OTHER_ENCODINGS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)

_QUOTE, _NEWLINE, _OPEN_OBJECT, _CLOSE_OBJECT = b'"\n{}'
_OPENING: Final = b"{["
_SPACE: Final = b" \t\r\n"

_SPACES = re.compile(rb"[ \t\r\n]*")
_SPACES_OF_LINE = re.compile(rb"[ \t\r]*")
_STRAY = re.compile(rb"[\]},]*")
_REST_OF_LINE = re.compile(rb"[^\n]*")
_STRINGS = rb'(?:"[^"\\\n]*+"[^"{}\[\]]*+)*+'
_FLAT = rb'(?:(?<!\n)[{\[][^"{}\[\]]*+' + _STRINGS + rb'[}\]][^"{}\[\]]*+' + _STRINGS + rb")*+"
_PLAIN = re.compile(rb'[^"{}\[\]]*+' + _STRINGS + _FLAT)
"""Up to the next bracket or string that has to be looked at. Objects and arrays that hold only scalars close
themselves and are passed over, but for an object that begins a line: that may be the next document."""

_TOP = re.compile(rb'[^"{}\[\],]*+(?:"[^"\\\n]*+"[^"{}\[\],]*+)*+')
_IN_STRING = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')


class RawDocument(Struct, frozen=True, gc=False):
    """The text of one document, as it is in the stream."""

    data: bytes
    """The text; empty when ``error`` says why there is none."""
    where: str
    """The place as errors name it: ``runs.ndjson:12`` or, in an array, ``runs.json[3] line 40``."""
    end_offset: int
    """How many bytes of the uncompressed stream are read once this piece is."""
    error: DocumentError | None = None


class RawLines(Struct, frozen=True):
    """Several lines of NDJSON that are a document each."""

    lines: list[bytes]
    """Without their line breaks."""
    name: str
    number: int
    """Of the first line."""
    end_offset: int
    """As of the last one's document."""

    def documents(self) -> Iterator[RawDocument]:
        """Yield the documents, in order."""
        prefix, end_offset = f"{self.name}:", self.end_offset - sum(map(len, self.lines)) - len(self.lines)
        for number, line in enumerate(self.lines, self.number):
            end_offset += len(line) + 1
            yield RawDocument(line, f"{prefix}{number}", end_offset)


def split(chunks: Iterable[bytes], *, name: str, max_document: int = MAX_DOCUMENT) -> Iterator[RawDocument]:
    """Yield the documents of a stream, in order. How the stream is cut into chunks makes no difference.

    A document is yielded before the next chunk is requested, so what the chunks raise comes after every document that
    was complete by then. ``max_document`` is a number of bytes; a larger document is an error in its place.
    """
    return flatten(split_lines(chunks, name=name, max_document=max_document))


def flatten(found: Iterable[RawDocument | RawLines]) -> Iterator[RawDocument]:
    """Yield the documents one by one."""
    for piece in found:
        if isinstance(piece, RawLines):
            yield from piece.documents()
        else:
            yield piece


def split_lines(
    chunks: Iterable[bytes], *, name: str, max_document: int = MAX_DOCUMENT
) -> Iterator[RawDocument | RawLines]:
    """Yield what ``split`` does, but lines that are a document each together, as many as were read together."""
    stream = _StreamBuffer(chunks, max_document)
    error = _start(stream, name)
    if error:
        yield RawDocument(b"", name, 0, error)
        return
    by_line = False
    while stream.skip_space():
        first = stream.buffer[:1]
        if first == b"[":
            yield from _array(stream, name)
        elif first == b"{":
            line, starts_line = stream.line, stream.at_line_start
            piece, is_open = stream.take_object(f"{name}:{line}")
            yield piece
            if not is_open:
                by_line = starts_line and line == stream.line and stream.skip_line_end()
            if by_line and not stream.inside_unclosed:
                yield from _lines(stream, name)
        else:
            yield _stray_text(stream, name)


def _start(stream: _StreamBuffer, name: str) -> DocumentError | None:
    """Skip a byte order mark. Return the error of a stream in another encoding."""
    while len(stream.buffer) < 4 and stream.more():
        pass
    first = bytes(stream.buffer[:4])
    if first.startswith(codecs.BOM_UTF8):
        stream.drop(len(codecs.BOM_UTF8))
    elif first.startswith(_OTHER_ENCODINGS) or b"\0" in first:
        return DocumentError(
            where=name, expected="UTF-8", got="UTF-16 or UTF-32", hint="convert it, for example with iconv -t UTF-8"
        )
    return None


def _lines(stream: _StreamBuffer, name: str) -> Iterator[RawDocument | RawLines]:
    """Yield NDJSON, until a line begins an object, or an array of documents, and does not end it."""
    number, offset, limit = stream.line, stream.offset, stream.max_document
    prefix = f"{name}:"
    most = _FIRST_LINES
    while True:
        lost, text = stream.take_lines(most)
        if not lost and not text:
            break
        most *= 2
        lines = text.split(b"\n")
        newline = int(len(lines) > 1)
        if newline:
            lines.pop()
        if newline and not lost and len(text) <= limit and all(map(_is_document, lines)):
            offset += len(text)
            found = RawLines(lines, name, number, offset)
            number += len(lines)
            del text, lines
            yield found
            continue
        for index, line in enumerate(lines):
            size = lost + len(line)
            end_offset = offset + size + newline
            if size > limit:
                yield _too_large(f"{prefix}{number}", end_offset, size, limit)
            elif _is_document(line):
                yield RawDocument(line, f"{prefix}{number}", end_offset)
            elif stripped := line.strip(_SPACE):
                if stripped == b"[" or (stripped[:1] == b"{" and not _ValueScanner().advance(bytearray(stripped))):
                    stream.buffer[:0] = b"\n".join(lines[index:]) + b"\n" * newline
                    stream.offset, stream.line, stream.at_line_start = offset, number, True
                    return
                yield RawDocument(line, f"{prefix}{number}", end_offset)
            offset, lost = end_offset, 0
            number += 1
        del text, lines  # before as much is read again
    stream.offset, stream.line = offset, number


def is_document(line: bytes) -> bool:
    """Return whether a line of NDJSON is a document."""
    return line.endswith(b"}") and line.count(b"{") == line.count(b"}")


try:
    from runspan._native import is_document as _is_document
except ImportError:
    _is_document = is_document


def _array(stream: _StreamBuffer, name: str) -> Iterator[RawDocument]:
    stream.drop(1)
    if stream.skip_space() and stream.buffer[:1] == b"]":
        stream.drop(1)
        stream.at_line_start = False
        return
    index = 0
    while stream.skip_space():
        piece, ended, is_open = stream.take_element(f"{name}[{index}] line {stream.line}")
        yield piece
        if not ended:
            if is_open:
                return  # the parser says where the element breaks off
            break
        separator = bytes(stream.buffer[:1])
        stream.drop(1)
        if separator == b"]":
            stream.at_line_start = False
            return
        index += 1
    where = f"{name}:{stream.line}"
    error = DocumentError(
        where=where,
        expected="']' after the last document",
        got="the end of the file",
        hint="the file is cut off: documents may be missing",
    )
    yield RawDocument(b"", where, stream.offset, error)


def _too_large(where: str, end_offset: int, size: int, limit: int) -> RawDocument:
    error = DocumentError(
        where=where,
        expected=f"at most {limit} bytes",
        got=f"{size} bytes",
        hint="raise the limit if there is memory for several times that size",
    )
    return RawDocument(b"", where, end_offset, error)


def _stray_text(stream: _StreamBuffer, name: str) -> RawDocument:
    """Return the error of text between documents: stray brackets and commas, or else the rest of the line."""
    where = f"{name}:{stream.line}"
    excerpt = stream.drop_matching(_STRAY if stream.buffer[0] in b"]}," else _REST_OF_LINE)
    stream.at_line_start = False
    got = excerpt.decode(errors="replace").rstrip()
    error = DocumentError(
        where=where,
        expected="a run document, a JSON object, or an array of them",
        got=repr(got[:20] + "…" if len(got) > 20 else got),
        hint="documents follow one another, or are elements of an array",
    )
    return RawDocument(b"", where, stream.offset, error)


class _ValueScanner:
    """Finds the end of one value. It knows strings and brackets; everything else is left to the parser.

    An object ends after its closing bracket, or, unclosed, where a line begins with ``{`` and JSON allows no value. An
    element of an array ends before the comma or bracket that follows it.
    """

    def __init__(self, *, element: bool = False) -> None:
        self.element = element
        self.position = 0 if element else 1
        self.line_starts = array("q")
        """Where lines begin with an object that is inside this one and not closed yet."""
        self._opened = bytearray(b"" if element else b"{")
        """The open brackets; a line break for an object that begins a line."""
        self._in_string = False

    @property
    def open(self) -> bool:
        return self._in_string or bool(self._opened)

    def advance(self, buffer: bytearray) -> bool:
        """Move to the end of the value and return True, or to the end of the buffer and return False."""
        opened, end = self._opened, len(buffer)
        while self.position < end:
            if self._in_string:
                if self._string(buffer, end):
                    return True
                if self._in_string:
                    return False
            pattern = _PLAIN if opened or not self.element else _TOP
            position = _match_end(pattern, buffer, self.position)
            self.position = position
            if position == end:
                return False
            byte = buffer[position]
            if byte == _QUOTE:
                self._in_string = True
            elif byte in _OPENING:
                if byte == _OPEN_OBJECT and not self.element and buffer[position - 1] == _NEWLINE:
                    if not self._allows_value(buffer, position):
                        return True
                    self.line_starts.append(position)
                    byte = _NEWLINE
                opened.append(byte)
            elif opened:
                if opened.pop() == _NEWLINE:
                    self.line_starts.pop()
                if not opened and not self.element:
                    self.position += 1
                    return True
            elif byte != _CLOSE_OBJECT:
                return True
            self.position += 1
        return False

    def _string(self, buffer: bytearray, end: int) -> bool:
        """Move to the end of the string, or of the buffer. Return True where the next document begins instead."""
        position = self.position
        while True:
            position = _match_end(_IN_STRING, buffer, position)
            if position < end and buffer[position] == _QUOTE:
                self._in_string = False
                self.position = position + 1
                return False
            if position + 1 >= end:
                # A backslash or a line break that ends the buffer is looked at again with what follows it.
                self.position = position
                return False
            if buffer[position] == _NEWLINE and buffer[position + 1] == _OPEN_OBJECT and not self.element:
                self.position = position + 1
                return True
            position += 1

    def _allows_value(self, buffer: bytearray, position: int) -> bool:
        """Return whether JSON allows a value at this position."""
        before = _last_significant(buffer, position)
        return before in b":[" or (before == ord(",") and self._opened[-1] == ord("["))


class _StreamBuffer:
    """The part of a stream that is being looked at.

    Every byte is scanned once, or twice where a chunk ends inside a string or an object is never closed, whatever the
    size of the chunks: the scan keeps its state between them. Of a document that is larger than the limit two bytes
    stay in memory.
    """

    def __init__(self, chunks: Iterable[bytes], max_document: int) -> None:
        self.buffer = bytearray()
        """The bytes not yet taken."""
        self.offset = 0
        """How many bytes were taken before them."""
        self.line = 1
        """The number of the line at the front."""
        self.at_line_start = True
        """Whether only white space is before the front on its line."""
        self.max_document = max_document
        self._chunks = iter(chunks)
        self._unclosed = array("q")
        """The offsets of objects at line starts that are known to be unclosed, the first one last."""
        self._unclosed_end = 0
        """The offset at which they are all known to be unclosed."""

    @property
    def inside_unclosed(self) -> bool:
        """Whether the front was scanned already, as a part of an object that is never closed."""
        return self.offset < self._unclosed_end

    def more(self) -> bool:
        """Read another chunk. Return False at the end of the stream."""
        for chunk in self._chunks:
            if chunk:
                self.buffer += chunk
                return True
        return False

    def drop(self, size: int) -> None:
        """Drop bytes from the front."""
        self.line += self.buffer.count(b"\n", 0, size)
        self.offset += size
        del self.buffer[:size]

    def skip_space(self) -> bool:
        """Drop white space. Return False at the end of the stream."""
        line = self.line
        self.drop_matching(_SPACES)
        self.at_line_start = self.at_line_start or self.line > line
        return bool(self.buffer)

    def skip_line_end(self) -> bool:
        """Drop white space and a line break. Return False when something else follows on the line."""
        self.drop_matching(_SPACES_OF_LINE)
        if self.buffer and self.buffer[0] != _NEWLINE:
            return False
        self.drop(len(self.buffer[:1]))
        self.at_line_start = True
        return True

    def drop_matching(self, pattern: re.Pattern[bytes]) -> bytes:
        """Drop what matches a repeated byte class, over chunks, and return how it begins."""
        excerpt = b""
        while True:
            end = _match_end(pattern, self.buffer, 0)
            excerpt += self.buffer[: min(end, _EXCERPT - len(excerpt))]
            self.drop(end)
            if self.buffer or not self.more():
                return excerpt

    def take_object(self, where: str) -> tuple[RawDocument, bool]:
        """Take the object at the front. One that is never closed ends before the next line that begins with ``{``.

        Return also whether it ended inside brackets or a string.
        """
        while self._unclosed and self._unclosed[-1] < self.offset:
            self._unclosed.pop()
        if not self._unclosed or self._unclosed[-1] != self.offset:
            scan = _ValueScanner()
            size, _ = self._scan(scan)
            if not scan.open or size > self.max_document:
                return self._take(scan.position, size, where), scan.open
            self._unclosed = array("q", (self.offset + position for position in reversed(scan.line_starts)))
            self._unclosed_end = self.offset + scan.position
        end = self._unclosed_end - self.offset
        if self.buffer[1 : self.buffer.find(b"\n", 0, end)].strip(_SPACE):
            next_line = self.buffer.find(b"\n{", 0, end)
            end = next_line + 1 if next_line >= 0 else end
        return self._take(end, end, where), True

    def take_element(self, where: str) -> tuple[RawDocument, bool, bool]:
        """Take the element of an array at the front, without the separator that follows.

        Return also whether that ended it, not the end of the stream, and whether it ended inside brackets or a string.
        """
        scan = _ValueScanner(element=True)
        size, ended = self._scan(scan)
        return self._take(scan.position, size, where), ended, scan.open

    def _scan(self, scan: _ValueScanner) -> tuple[int, bool]:
        """Move to the end of a value. Return its size, and whether it ended before the stream did."""
        lost = 0
        while not scan.advance(self.buffer):
            if lost + scan.position > self.max_document:
                lost += self._forget(scan)
            if not self._more_of(scan):
                scan.position = len(self.buffer)
                return lost + scan.position, False
        return lost + scan.position, True

    def _more_of(self, scan: _ValueScanner) -> bool:
        """Read another chunk of a value. Documents that follow an unclosed one come before what the chunks raise."""
        try:
            return self.more()
        except Exception as error:  # whatever the chunks raise
            if scan.element or b"\n{" not in self.buffer:
                raise
            self._chunks = _raising(error)
            return False

    def _forget(self, scan: _ValueScanner) -> int:
        """Drop what was scanned, except the two bytes that decide whether ``{`` may follow. Return how many went."""
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

    def _take(self, end: int, size: int, where: str) -> RawDocument:
        """Drop a value, and return its text, or the error of one whose size is larger than the limit."""
        with memoryview(self.buffer) as view:
            data = b"" if size > self.max_document else bytes(view[:end])
        self.at_line_start = self.buffer[end - 1 : end] == b"\n"
        self.drop(end)
        if size > self.max_document:
            return _too_large(where, self.offset, size, self.max_document)
        return RawDocument(data.rstrip(_SPACE), where, self.offset)

    def take_lines(self, most: int) -> tuple[int, bytes]:
        """Take complete lines, ``most`` bytes of them or one line, or the end of the stream without a line break.

        The number says how many bytes of the first line, which is larger than the limit, were dropped before.
        """
        lost = searched = 0
        while not (end := self._end_of_lines(searched, most)):
            searched = len(self.buffer)
            if lost + searched > self.max_document:
                lost += searched
                searched = 0
                self.buffer.clear()
            if not self.more():
                end = len(self.buffer)
                break
        with memoryview(self.buffer) as view:
            text = bytes(view[:end])
        del self.buffer[:end]
        return lost, text

    def _end_of_lines(self, start: int, most: int) -> int:
        return self.buffer.rfind(b"\n", start, start + most) + 1 or self.buffer.find(b"\n", start + most) + 1


def _raising(error: Exception) -> Iterator[bytes]:
    raise error
    yield b""


def _last_significant(buffer: bytearray, end: int) -> int:
    """Return the last byte before a position that is no white space."""
    size = 16
    while True:
        start = max(0, end - size)
        text = buffer[start:end].rstrip(_SPACE)
        if text or start == 0:
            return text[-1] if text else buffer[0]
        size *= 4


def _match_end(pattern: re.Pattern[bytes], buffer: bytearray, position: int) -> int:
    match = pattern.match(buffer, position)
    return match.end() if match else position
