"""What a measurement says: samples of contestants that took turns, ratios of them, and the goals they are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a figure should keep: at least, or at most."""

    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result.

    low, high: the range of the single rounds. unit: "x" for a ratio; else what the number counts. cpu: the same ratio
    by processor time, which other work on the machine disturbs less; None where it was not measured.
    """

    section: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    cpu: float | None = None
    unit: str = "x"
    goal: Goal | None = None
    note: str = ""


def at_least(bound: float) -> Goal:
    return Goal(bound)


def at_most(bound: float) -> Goal:
    return Goal(bound, at_most=True)


def take_turns(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """The samples of each contestant, one a round. Each round begins with the next contestant, so that none always
    runs first or after the same one. A contestant is given the number of the round, to choose fresh data by."""
    names = list(contestants)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(contestants[name](turn))
    return samples


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """The best of one by the best of the other, and the lowest and highest ratio of a single round. Samples are times
    or other costs: the least is the best, being the one that the machine disturbed least."""
    singles = [a / b for a, b in zip(over, under, strict=True)]
    return min(over) / min(under), min(singles), max(singles)
