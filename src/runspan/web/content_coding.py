"""Content codings of responses: which one a client takes (RFC 9110, section 12.5.3), and how it is applied; no I/O.

The fastest levels are used: a document becomes a tenth of its size, in a time that is small beside that of reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import zstandard
from isal import isal_zlib
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

MIN_BYTES: Final = 1024
"""A shorter body is sent as it is: its headers are about as long."""
_ZSTD_LEVEL: Final = 1
_GZIP_LEVEL: Final = 1
_GZIP_WBITS: Final = 31
_ACCEPTED: Final = 1e-9
"""The quality of ``identity`` where a client does not mention it: it takes it, and prefers what it mentions."""


class Coding(NamedTuple):
    """A content coding."""

    name: str
    encode: Callable[[bytes], bytes]
    """Returns a body in this coding."""
    compressor: Callable[[], Any]
    """Returns an object with the methods ``compress`` and ``flush`` of ``zlib.compressobj``."""

    def encode_pieces(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a body that is made piece by piece in this coding. Pieces may be empty."""
        compressor = self.compressor()
        for piece in pieces:
            yield compressor.compress(piece)
        yield compressor.flush()


def _zstd() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)


GZIP: Final = Coding(
    "gzip",
    partial(isal_zlib.compress, level=_GZIP_LEVEL, wbits=_GZIP_WBITS),
    partial(isal_zlib.compressobj, level=_GZIP_LEVEL, wbits=_GZIP_WBITS),
)
ZSTD: Final = Coding("zstd", lambda body: _zstd().compress(body), lambda: _zstd().compressobj())
"""One frame with a checksum, without a dictionary, in the window that RFC 9659 allows: every client decodes it."""


class Negotiated(NamedTuple):
    """What a client takes."""

    coding: Coding | None = None
    """The coding to use; None for none, also for a client that takes nothing that the server has."""
    min_bytes: int = MIN_BYTES
    """Bytes from which a body is encoded; 0 if the client does not take it as it is."""

    def coding_of(self, size: int) -> Coding | None:
        """Return the coding of a body of this size, None if it is sent as it is."""
        return self.coding if size >= self.min_bytes else None


IDENTITY: Final = Negotiated()


def negotiate(accept_encoding: str | None) -> Negotiated:
    """Return what the value of ``Accept-Encoding`` asks for; None if there is no such header.

    Of what a client takes equally well, the shorter is sent. Only a client that names zstd gets it, unless it excludes
    gzip: many that accept ``*`` do not decode it.
    """
    return _negotiate(accept_encoding) if accept_encoding else IDENTITY


def encode_response(response: Response, accept_encoding: str | None) -> None:
    """Apply the coding that a value of ``Accept-Encoding`` asks for."""
    response.vary.add("Accept-Encoding")
    negotiated = negotiate(accept_encoding)
    coding = negotiated.coding
    if coding is None:
        return
    if response.is_sequence:
        body = response.get_data()
        if len(body) < negotiated.min_bytes:
            return
        response.set_data(coding.encode(body))
    else:
        response.response = coding.encode_pieces(response.response)  # type: ignore[arg-type]  # of bytes
    response.headers["Content-Encoding"] = coding.name


@lru_cache(maxsize=64)
def _negotiate(accept_encoding: str) -> Negotiated:
    accept = parse_accept_header(accept_encoding, Accept)
    named = {value.lower() for value, _ in accept}
    identity = accept["identity"] if accept.find("identity") >= 0 else _ACCEPTED
    # Of equal qualities: the named ones, zstd first; of those that only "*" stands for, gzip.
    order = (*(each for each in (ZSTD, GZIP) if each.name in named), GZIP, ZSTD)
    coding = max(order, key=lambda each: accept[each.name])
    quality = accept[coding.name]
    if not quality or quality < identity:
        return IDENTITY
    return Negotiated(coding, MIN_BYTES if identity else 0)
