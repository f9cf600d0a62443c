"""Samples of contestants that take turns, ratios of them, and the goals of the ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a figure: at least, or at most."""

    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    section: str
    name: str
    value: float
    low: float | None = None
    """The lowest value of a single round."""
    high: float | None = None
    cpu: float | None = None
    """The same ratio by processor time, which other work on the machine disturbs less; None: not measured."""
    unit: str = "x"
    """``x`` for a ratio, otherwise the unit."""
    goal: Goal | None = None
    note: str = ""


def at_least(bound: float) -> Goal:
    return Goal(bound)


def at_most(bound: float) -> Goal:
    return Goal(bound, at_most=True)


def seconds_of(action: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def take_turns(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Return the samples of each contestant, one per round.

    Each round begins with the next contestant, so that none always runs first. A contestant gets the number of the
    round, to use other data in each.
    """
    names = list(contestants)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(contestants[name](turn))
    return samples


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of the best samples, and the lowest and highest ratio of a single round.

    Samples are times or other costs, so the lowest is the best, because the machine disturbed it least.
    """
    singles = [a / b for a, b in zip(over, under, strict=True)]
    return min(over) / min(under), min(singles), max(singles)
