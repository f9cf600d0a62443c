"""The byte stream of a file to the texts of its run documents, in one pass and bounded memory; no I/O.

Three framings are told apart by what the stream shows, never by its name:

* it begins with ``[``: an array of documents;
* a document fills its line: NDJSON from there on, where each line stands for itself, however broken it is. Only a line
  that opens an object and does not close it may be continued by the next ones, unless these are documents themselves
  (``doubt`` tells that);
* anything else: documents one after the other, over as many lines as they like.

The splitter finds boundaries and judges no JSON: broken text is handed on, for the parser to name the place in it.
Where there is no text to hand on (too large, not UTF-8, junk between documents) the piece carries the error instead.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from runspan.errors import DocumentError
from runspan.sources.stream_buffer import ScannedValue, StreamBuffer, has_unclosed_object

MAX_DOCUMENT: Final = 256 << 20
"""The default bound of one document, in bytes."""

_STRAY = re.compile(rb"[\]},]*")
_REST_OF_LINE = re.compile(rb"[^\n]*")
_SPACE: Final = b" \t\r\n"
_CLOSE_OBJECT: Final = ord("}")
_OTHER_ENCODINGS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class RawDocument(Struct, frozen=True, gc=False):
    """The text of one document as it stands in the stream.

    data: the text, empty when ``error`` tells why there is none.
    where: what errors call the place, ``runs.ndjson:12`` or, in an array, ``runs.json[3] line 40``.
    end_offset: how many bytes of the stream, uncompressed, are done with once this piece is.
    """

    data: bytes
    where: str
    end_offset: int
    error: DocumentError | None = None


def split(chunks: Iterable[bytes], *, name: str, max_document: int = MAX_DOCUMENT) -> Iterator[RawDocument]:
    """The documents of a stream, in order; how the stream is cut into chunks makes no difference.

    A piece is handed out before the next chunk is asked for. So whatever the chunks raise comes after every document
    that was whole by then.
    """
    window = StreamBuffer(chunks, max_document)
    refusal = _start(window, name)
    if refusal:
        yield RawDocument(b"", name, 0, refusal)
        return
    by_line = False
    while window.skip_space():
        first = window.buffer[:1]
        if first == b"[":
            yield from _array(window, name)
        elif first == b"{":
            line, starts_line = window.line, window.at_line_start
            taken = window.document(by_line=by_line)
            yield _piece(window, taken, f"{name}:{line}")
            if not taken.open:
                by_line = starts_line and line == window.line and window.line_ends()
            if by_line and not window.judged:
                yield from _lines(window, name)
        else:
            yield _stray_text(window, name)


def _start(window: StreamBuffer, name: str) -> DocumentError | None:
    """Skip a byte order mark; the error of a stream in another encoding."""
    while len(window.buffer) < 4 and window.more():
        pass
    head = bytes(window.buffer[:4])
    if head.startswith(codecs.BOM_UTF8):
        window.drop(len(codecs.BOM_UTF8))
    elif head.startswith(_OTHER_ENCODINGS) or b"\0" in head:
        return DocumentError(
            where=name, expected="UTF-8", got="UTF-16 or UTF-32", hint="convert it, for example with iconv -t UTF-8"
        )
    return None


def _lines(window: StreamBuffer, name: str) -> Iterator[RawDocument]:
    """NDJSON, until a line opens an object, or an array of documents, and does not close it."""
    number, offset, bound = window.line, window.offset, window.max_document
    prefix = f"{name}:"
    for batch in window.lines():
        lost, lines, newline = batch
        if lost:
            offset += lost + newline
            yield _too_large(f"{prefix}{number}", offset, lost, bound)
            number += 1
        for index, line in enumerate(lines):
            size = len(line)
            if size > bound:
                yield _too_large(f"{prefix}{number}", offset + size + newline, size, bound)
            elif size and line[-1] == _CLOSE_OBJECT and not has_unclosed_object(line):
                yield RawDocument(line, f"{prefix}{number}", offset + size + newline)
            elif text := line.strip(_SPACE):
                if text == b"[" or (text[:1] == b"{" and (text[-1:] != b"}" or has_unclosed_object(text))):
                    window.restore(batch, index, offset=offset, line=number)
                    return
                yield RawDocument(line, f"{prefix}{number}", offset + size + newline)
            offset += size + newline
            number += 1
    window.offset, window.line = offset, number


def _array(window: StreamBuffer, name: str) -> Iterator[RawDocument]:
    window.drop(1)
    if window.skip_space() and window.buffer[:1] == b"]":
        window.drop(1)
        window.at_line_start = False
        return
    index = 0
    while window.skip_space():
        where = f"{name}[{index}] line {window.line}"
        taken = window.element()
        yield _piece(window, taken, where)
        if not taken.ended:
            if taken.open:
                return  # the parser says where the element breaks off
            break
        separator = bytes(window.buffer[:1])
        window.drop(1)
        if separator == b"]":
            window.at_line_start = False
            return
        index += 1
    yield RawDocument(
        b"",
        f"{name}:{window.line}",
        window.offset,
        DocumentError(
            where=f"{name}:{window.line}",
            expected="']' after the last document",
            got="the end of the file",
            hint="the file is cut off: documents may be missing",
        ),
    )


def _piece(window: StreamBuffer, taken: ScannedValue, where: str) -> RawDocument:
    if taken.size > window.max_document:
        return _too_large(where, window.offset, taken.size, window.max_document)
    return RawDocument(taken.data.rstrip(_SPACE), where, window.offset)


def _too_large(where: str, end_offset: int, size: int, bound: int) -> RawDocument:
    error = DocumentError(
        where=where,
        expected=f"at most {bound} bytes",
        got=f"{size} bytes",
        hint="raise the bound if there is memory for several times that size",
    )
    return RawDocument(b"", where, end_offset, error)


def _stray_text(window: StreamBuffer, name: str) -> RawDocument:
    """What stands where a document should: stray brackets and commas, or else the rest of the line."""
    where = f"{name}:{window.line}"
    excerpt = window.run(_STRAY if window.buffer[0] in b"]}," else _REST_OF_LINE)
    window.at_line_start = False
    got = excerpt.decode(errors="replace").rstrip()
    error = DocumentError(
        where=where,
        expected="a run document, a JSON object, or an array of them",
        got=repr(got[:20] + "…" if len(got) > 20 else got),
        hint="documents stand one after the other, or in an array",
    )
    return RawDocument(b"", where, window.offset, error)
