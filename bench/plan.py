"""How much the sections measure, as given on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a measurement."""

    folder: Path
    """For temporary files."""
    runs: int = 0
    """0: the section's choice."""
    rounds: int = 0
    """0: the section's choice."""
    quick: bool = False
    """Measure small sizes."""
    full: bool = False
    """Measure the largest sizes, which take hours and gigabytes."""
    scale: bool = False
    """Measure Tempo with a million runs, and the store with ten million."""
    say: Callable[[str], None] = lambda message: None
    """Shows an intermediate result."""
