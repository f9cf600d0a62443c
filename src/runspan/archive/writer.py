"""Documents to the files of an archive: packed, with the digest of each; no I/O."""

from __future__ import annotations

import zlib
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

import zstandard

from runspan.delivery.dead_letters import framed
from runspan.model.document import sort_time
from runspan.model.run import Run
from runspan.sources.archive_manifest import PART_PREFIX, PART_SUFFIXES, ArchivePart, digest_line

PART_BYTES: Final = 32 << 20
"""Of documents in a file, about: it is packed in memory, and one that is cut short costs at most so much work again."""

_ZSTD_LEVEL: Final = 9
_GZIP_LEVEL: Final = 6


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class WrittenPart(NamedTuple):
    """A file and the one beside it, and what the manifest says of them."""

    part: ArchivePart
    content: bytes
    digests: bytes


class PartWriter:
    """Takes documents until it is full. number: of the file in the archive, from 1."""

    def __init__(self, number: int, compression: str, *, target: int = PART_BYTES) -> None:
        self._stem = f"{PART_PREFIX}{number:06}"
        self._suffix = PART_SUFFIXES[compression]
        self._target = target
        self._packer = _packer(compression)
        self._packed: list[bytes] = []
        self._digests: list[bytes] = []
        self._times: list[int] = []
        self._bytes = 0

    @property
    def runs(self) -> int:
        return len(self._digests)

    @property
    def full(self) -> bool:
        return self._bytes >= self._target

    def add(self, run: Run) -> None:
        """Appends a document: its line, or an array of its own when it stands on several."""
        self._packed.append(self._packer.compress(framed(run.text)))
        self._digests.append(digest_line(sha256(run.text).digest(), run.id))
        self._times.append(sort_time(run.envelope))
        self._bytes += len(run.text)

    def finish(self) -> WrittenPart:
        """The files; nothing can be added any more."""
        content = b"".join([*self._packed, self._packer.flush()])
        digests = b"".join(self._digests)
        part = ArchivePart(
            name=self._stem + self._suffix,
            runs=self.runs,
            bytes=len(content),
            sha256=sha256(content).hexdigest(),
            document_bytes=self._bytes,
            digests=f"{self._stem}.sha256",
            digests_sha256=sha256(digests).hexdigest(),
            oldest=min(self._times),
            newest=max(self._times),
        )
        return WrittenPart(part, content, digests)


def _packer(compression: str) -> _Packer:
    if compression == "gzip":
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
