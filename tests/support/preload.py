"""Faults inside a process that a test starts: its store's files fail with EIO, its wall clock is wrong."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")


class Faults:
    """The faults of the processes that run with ``env``; changes count at once."""

    def __init__(self, directory: Path, library: Path) -> None:
        self._file = directory / "faults"
        self.env = {"LD_PRELOAD": str(library), "RUNSPAN_TEST_FAULTS": str(self._file)}
        self.set()

    def set(self, *, clock: float = 0.0, failing: float = 0.0) -> None:
        """``clock``: by how many seconds it is ahead. ``failing``: the share of operations on the store's files."""
        content = struct.pack("=qq", int(clock * 1e9), int(failing * 1000))
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(content)


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Needs a C compiler and a dynamic linker that loads a library first."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE], check=True)
    return Faults(tmp_path, library)
