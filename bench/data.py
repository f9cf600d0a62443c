"""Run documents for the measurements, fresh for each seed, and as NDJSON files."""

from __future__ import annotations

from pathlib import Path

from runspan.testing import generate


def seed(section: int, turn: int, part: int = 0) -> int:
    """A seed of its own for each section, round and part: no document is seen twice."""
    return section * 1_000_000 + turn * 1_000 + part


def write_ndjson(path: Path, count: int, number: int) -> Path:
    """A file of ``count`` documents of this seed."""
    with path.open("wb", buffering=1 << 20) as file:
        file.writelines(text + b"\n" for text in generate(count, seed=number))
    return path


def write_ndjson_of(path: Path, size: int, number: int) -> int:
    """A file of about ``size`` bytes; returns how many documents it has."""
    written = count = 0
    with path.open("wb", buffering=1 << 20) as file:
        for text in generate(size // 100, seed=number):
            written += file.write(text + b"\n")
            count += 1
            if written >= size:
                break
    return count
