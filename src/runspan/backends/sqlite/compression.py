"""Compression of documents into zstd frames, with a dictionary that is trained on the store's first documents.

Every frame has a checksum of its content, so a damaged frame is an error and never another document. It also has the id
of its dictionary, so frames that were written without one stay readable.

The document of a run that grows is two frames, so that its next version keeps the first: what the versions begin with
is not compressed again with each step. Before them is a skippable frame with the length of the first (RFC 8878, 3.1.2),
so every zstd decoder reads the document.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict, deque
from contextlib import suppress
from hashlib import sha256
from struct import Struct
from typing import Final

import zstandard

LEVEL: Final = 3
TRAINING_RUNS: Final = 1000
_TRAINING_BYTES = 4 << 20
_DICTIONARY_BYTES = 64 << 10
_COVER: Final = {"k": 1024, "d": 8}
"""Parameters of the training: those that a search finds for run documents, which costs five times as much."""
_RECOMPRESSED_RUNS = 100
"""Runs of one transaction."""
_MOVE = "UPDATE runs SET id = (SELECT max(id) + 1 FROM runs), document = ? WHERE id = ?"
"""Behind the other rows, so that whole pages become free: a smaller row leaves its page half-empty."""
_FIRST_ID = 1 << 15
"""zstd reserves the dictionary ids below."""
_LENGTH: Final = Struct("<4sII")
"""A skippable frame: magic number, size of the content, and the content, which is the length of the next frame."""
_SKIPPABLE: Final = b"\x50\x2a\x4d\x18"
_LENGTH_BYTES: Final = 4
_MIN_FIRST: Final = 16 << 10
_TAIL_PART: Final = 8
"""The first of two frames has at least so many bytes, and the second at most an eighth as many."""


class CorruptFrame(Exception):
    """A frame cannot be decompressed. The message says why."""


class Compression:
    """Compresses and decompresses. May be used from several threads, each of which takes a context of its own.

    The dictionary is trained once the store has enough documents, and those that were written before it are compressed
    again.
    """

    def __init__(self) -> None:
        self._dictionaries: dict[int, zstandard.ZstdCompressionDict] = {}
        self._compressors: defaultdict[int, deque[zstandard.ZstdCompressor]] = defaultdict(deque)
        self._decompressors: defaultdict[int, deque[zstandard.ZstdDecompressor]] = defaultdict(deque)
        """The idle contexts by dictionary id."""
        self._next_size = TRAINING_RUNS
        self._next_look = 0
        """After how many changes of the connection there may be so many."""

    def load(self, connection: sqlite3.Connection) -> None:
        """Add the store's dictionaries."""
        for number, content in connection.execute("SELECT id, content FROM dictionaries"):
            dictionary = zstandard.ZstdCompressionDict(content)
            dictionary.precompute_compress(level=LEVEL)
            self._dictionaries[number] = dictionary

    def compress(self, data: bytes) -> bytes:
        """Return a frame with this content."""
        number = max(self._dictionaries, default=0)
        idle = self._compressors[number]
        try:
            compressor = idle.pop()
        except IndexError:
            dictionary = self._dictionaries.get(number)
            compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary, write_checksum=True)
        frame = compressor.compress(data)
        idle.append(compressor)
        return frame

    def compress_growing(self, data: bytes, stable: int, before: bytes, shared: int) -> bytes:
        """Return frames with this content.

        stable: how many bytes at the front the next content is likely to begin with.
        before: the frames of the one before, empty if they are not known.
        shared: how many bytes at the front it has too.
        """
        first = _split(before)[0]
        size = zstandard.frame_content_size(first) if first else 0
        if not (_MIN_FIRST <= size <= shared and len(data) - size <= size // _TAIL_PART):
            if stable < _MIN_FIRST:
                return self.compress(data)
            size, first = stable, self.compress(data[:stable])
        return _LENGTH.pack(_SKIPPABLE, _LENGTH_BYTES, len(first)) + first + self.compress(data[size:])

    def decompress(self, frames: bytes, connection: sqlite3.Connection) -> bytes:
        """Return the content of frames. Raise CorruptFrame when they are not what ``compress`` wrote.

        connection: For a dictionary that this process has not loaded yet.
        """
        return b"".join([self._decompress(frame, connection) for frame in _split(frames)])

    def _decompress(self, frame: bytes, connection: sqlite3.Connection) -> bytes:
        try:
            number = zstandard.get_frame_parameters(frame).dict_id
            if number and number not in self._dictionaries:
                self.load(connection)
                if number not in self._dictionaries:
                    raise CorruptFrame(f"dictionary {number} is missing")
            idle = self._decompressors[number]
            try:
                decompressor = idle.pop()
            except IndexError:
                decompressor = zstandard.ZstdDecompressor(dict_data=self._dictionaries.get(number))
            content = decompressor.decompress(frame)
        except (zstandard.ZstdError, MemoryError) as error:
            raise CorruptFrame(str(error) or "its length is wrong") from None
        idle.append(decompressor)
        return content

    def is_due(self, connection: sqlite3.Connection) -> bool:
        """Return True once there are enough documents to train the dictionary, and again when they have doubled."""
        if self._dictionaries or connection.total_changes < self._next_look:
            return False
        # Row ids only grow, so the highest is a cheap bound for the number of documents so far.
        highest: int = connection.execute("SELECT max(id) FROM runs").fetchone()[0] or 0
        if highest < self._next_size:
            self._next_look = connection.total_changes + self._next_size - highest
            return False
        self._next_size = highest * 2
        return True

    def train(self, connection: sqlite3.Connection) -> bytes | None:
        """Return a dictionary of the newest documents for ``add``; None if they are too few or too similar."""
        samples: list[bytes | bytearray | memoryview[int]] = []
        newest = "SELECT document FROM runs ORDER BY id DESC LIMIT ?"
        for (frame,) in connection.execute(newest, (TRAINING_RUNS,)):
            with suppress(CorruptFrame):
                samples.append(self.decompress(frame, connection)[: _DICTIONARY_BYTES // 2])
            if sum(map(len, samples)) > _TRAINING_BYTES:
                break
        try:
            dictionary = zstandard.train_dictionary(
                _DICTIONARY_BYTES, samples, level=LEVEL, dict_id=_FIRST_ID, **_COVER
            )
        except zstandard.ZstdError:
            return None
        return dictionary.as_bytes()

    def recompress(self, connection: sqlite3.Connection, after: int, last: int) -> int | None:
        """Compress some of the documents with the dictionary that were written without it, in the order of their rows.

        after, last: numbers of rows. Return that of the last row that was looked at, None if there are no more.
        """
        batch = "SELECT id, document FROM runs WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        rows = connection.execute(batch, (after, last, _RECOMPRESSED_RUNS)).fetchall()
        for row_id, frames in rows:
            with suppress(CorruptFrame, zstandard.ZstdError):
                if not all(zstandard.get_frame_parameters(frame).dict_id for frame in _split(frames)):
                    connection.execute(_MOVE, (self.compress(self.decompress(frames, connection)), row_id))
        return rows[-1][0] if rows else None

    def add(self, connection: sqlite3.Connection, content: bytes) -> None:
        """Store a dictionary, unless another process has stored one. ``load`` makes it the one that is used."""
        row = (_FIRST_ID, content, sha256(content).digest())
        connection.execute("INSERT OR IGNORE INTO dictionaries VALUES (?, ?, ?)", row)


def _split(frames: bytes) -> list[bytes]:
    """Return the one or two frames of a document. Raise CorruptFrame when they are no bytes."""
    if not isinstance(frames, bytes):  # a damaged row can have NULL or a text there
        raise CorruptFrame(f"it is of type {type(frames).__name__}")
    if not frames.startswith(_SKIPPABLE) or len(frames) < _LENGTH.size:
        return [frames]
    second = _LENGTH.size + _LENGTH.unpack_from(frames)[2]
    return [frames[_LENGTH.size : second], frames[second:]]
