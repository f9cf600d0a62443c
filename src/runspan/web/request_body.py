"""Request bodies: read within a bound, and inflated within the same bound."""

from __future__ import annotations

from flask import Request
from isal import isal_zlib

from runspan.errors import PayloadError, PayloadTooLarge, PayloadUnsupported

_GZIP = 31
_MAX_MEMBERS = 16
"""A gzip body may be several streams in a row; a bound on them, since each costs a copy of what follows."""


def read_body(request: Request, bound: int) -> bytes:
    """The body, inflated when it is gzip. bound: of the body as sent and of what it inflates to."""
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise PayloadUnsupported(where="Content-Encoding", expected="gzip or none", got=repr(encoding[:60]))
    if request.content_length is not None and request.content_length > bound:
        raise _too_large(bound, f"{request.content_length} bytes")
    body = request.get_data(cache=False)
    return inflate(body, bound) if "gzip" in encoding else body


def inflate(data: bytes, bound: int) -> bytes:
    """The content of a gzip stream, never holding more than ``bound`` bytes of it.

    PayloadError for what is no gzip, ends early or goes on after its end; PayloadTooLarge over the bound.
    """
    parts: list[bytes] = []
    room = bound
    for _ in range(_MAX_MEMBERS):
        stream = isal_zlib.decompressobj(wbits=_GZIP)
        try:
            part = stream.decompress(data, room + 1)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
            raise PayloadError(where="body", expected="gzip", got=str(error), hint="see Content-Encoding") from None
        if len(part) > room:
            raise _too_large(bound, "more, once inflated")
        if not stream.eof:
            raise PayloadError(where="body", expected="a whole gzip stream", got=f"{len(data)} bytes that end early")
        parts.append(part)
        room -= len(part)
        data = stream.unused_data
        if not data:
            return b"".join(parts)
    raise PayloadError(where="body", expected=f"at most {_MAX_MEMBERS} gzip streams", got="more")


def _too_large(bound: int, got: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        "request body over the bound",
        expected=f"at most {bound} bytes",
        got=got,
        hint="send it in parts, or raise the server's bound",
    )
