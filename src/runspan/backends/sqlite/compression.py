"""Compression of documents into zstd frames, with a dictionary that is trained on the store's first documents.

Every frame has a checksum of its content, so a damaged frame is an error and never another document. It also has the id
of its dictionary, so frames that were written without one, or with another, stay readable.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Final

from zstandard import (
    ZstdCompressionDict,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
    get_frame_parameters,
    train_dictionary,
)

LEVEL: Final = 3
TRAINING_RUNS: Final = 1000
_TRAINING_BYTES = 4 << 20
_DICTIONARY_BYTES = 64 << 10
_FIRST_ID = 1 << 15
"""zstd reserves the dictionary ids below."""

FindDictionary = Callable[[int], bytes | None]
"""Returns the content of a dictionary by its id, None when there is none."""


class CorruptFrame(Exception):
    """A frame cannot be decompressed. The message says why."""


class Compression:
    """Compresses and decompresses. May be used from several threads; each takes a codec of its own."""

    def __init__(self) -> None:
        self._dictionaries: dict[int, ZstdCompressionDict] = {}
        self._current = 0
        self._idle: deque[_Codec] = deque()

    @property
    def trained(self) -> bool:
        """Whether there is a dictionary."""
        return self._current != 0

    def add(self, number: int, content: bytes) -> None:
        """Add a dictionary. From now on the newest one is used."""
        dictionary = ZstdCompressionDict(content)
        dictionary.precompute_compress(level=LEVEL)
        self._dictionaries[number] = dictionary
        self._current = max(self._current, number)

    def compress(self, data: bytes) -> bytes:
        """Return a frame with this content."""
        codec = self._idle_codec()
        try:
            return codec.compressor(self._current, self._dictionaries).compress(data)
        finally:
            self._idle.append(codec)

    def decompress(self, frame: bytes, find: FindDictionary) -> bytes:
        """Return the content of a frame. Raise CorruptFrame when the frame is not what ``compress`` wrote.

        find: reads a dictionary that this process has not loaded yet.
        """
        try:
            number = get_frame_parameters(frame).dict_id
            if number and number not in self._dictionaries:
                content = find(number)
                if content is None:
                    raise CorruptFrame(f"dictionary {number} is missing")
                self.add(number, content)
            codec = self._idle_codec()
            try:
                return codec.decompressor(number, self._dictionaries).decompress(frame)
            finally:
                self._idle.append(codec)
        except (ZstdError, MemoryError) as error:
            raise CorruptFrame(str(error) or "its length is wrong") from None

    def _idle_codec(self) -> _Codec:
        try:
            return self._idle.pop()
        except IndexError:
            return _Codec()


class _Codec:
    """The zstd contexts of one thread at a time, by dictionary id."""

    __slots__ = ("compressors", "decompressors")

    def __init__(self) -> None:
        self.compressors: dict[int, ZstdCompressor] = {}
        self.decompressors: dict[int, ZstdDecompressor] = {}

    def compressor(self, number: int, dictionaries: dict[int, ZstdCompressionDict]) -> ZstdCompressor:
        found = self.compressors.get(number)
        if found is None:
            found = ZstdCompressor(level=LEVEL, dict_data=dictionaries.get(number), write_checksum=True)
            self.compressors[number] = found
        return found

    def decompressor(self, number: int, dictionaries: dict[int, ZstdCompressionDict]) -> ZstdDecompressor:
        found = self.decompressors.get(number)
        if found is None:
            found = self.decompressors[number] = ZstdDecompressor(dict_data=dictionaries.get(number))
        return found


def find_dictionary(connection: sqlite3.Connection) -> FindDictionary:
    """Return a function that reads dictionaries of the store."""

    def find(number: int) -> bytes | None:
        row = connection.execute("SELECT content FROM dictionaries WHERE id = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

    return find


def load_dictionaries(connection: sqlite3.Connection, compression: Compression) -> None:
    """Add the store's dictionaries."""
    for number, content in connection.execute("SELECT id, content FROM dictionaries"):
        compression.add(number, content)


class DictionaryTrainer:
    """Trains the dictionary once the store has enough documents. The writer thread calls it after every commit.

    Rows that were written before keep their frames: their number is bounded.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._next_size = TRAINING_RUNS

    def __call__(self, connection: sqlite3.Connection) -> None:
        if self._compression.trained:
            return
        # Row ids only grow, so the highest is a cheap bound for the number of documents so far.
        highest = connection.execute("SELECT max(id) FROM runs").fetchone()[0] or 0
        if highest < self._next_size:
            return
        self._next_size = highest * 2
        content = self._train(connection)
        if content is None:
            return
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT OR IGNORE INTO dictionaries VALUES (?, ?)", (_FIRST_ID, content))
        connection.execute("COMMIT")
        load_dictionaries(connection, self._compression)

    def _train(self, connection: sqlite3.Connection) -> bytes | None:
        samples: list[bytes | bytearray | memoryview[int]] = []
        size = 0
        find = find_dictionary(connection)
        newest = "SELECT document FROM runs ORDER BY id DESC LIMIT ?"
        for (frame,) in connection.execute(newest, (TRAINING_RUNS,)):
            try:
                samples.append(self._compression.decompress(frame, find)[: _DICTIONARY_BYTES // 2])
            except CorruptFrame:
                continue
            size += len(samples[-1])
            if size > _TRAINING_BYTES:
                break
        try:
            return train_dictionary(_DICTIONARY_BYTES, samples, level=LEVEL, dict_id=_FIRST_ID).as_bytes()
        except ZstdError:
            return None  # too few or too similar documents; retried when there are twice as many
