"""How much is measured: what the command line asked for, as the sections read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """folder: for files of the measurement, deleted afterwards. runs, rounds: 0 leaves the choice to the section.

    quick: small sizes. full: the largest ones, for hours and gigabytes. say: told what was measured, as it goes.
    """

    folder: Path
    runs: int = 0
    rounds: int = 0
    quick: bool = False
    full: bool = False
    say: Callable[[str], None] = lambda words: None
