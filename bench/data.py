"""Generated run documents as NDJSON files, different for each seed."""

from __future__ import annotations

from pathlib import Path

from runspan.testing import generate


def seed(section: int, turn: int, part: int = 0) -> int:
    """Return a seed for a section, round and part, so that no document is used twice."""
    return section * 1_000_000 + turn * 1_000 + part


def write_ndjson(path: Path, count: int, number: int) -> Path:
    """Write a file of ``count`` documents."""
    with path.open("wb", buffering=1 << 20) as file:
        file.writelines(text + b"\n" for text in generate(count, seed=number))
    return path


def write_ndjson_of(path: Path, size: int, number: int) -> int:
    """Write a file of about ``size`` bytes. Return its number of documents."""
    written = count = 0
    with path.open("wb", buffering=1 << 20) as file:
        for text in generate(size // 100, seed=number):
            written += file.write(text + b"\n")
            count += 1
            if written >= size:
                break
    return count
