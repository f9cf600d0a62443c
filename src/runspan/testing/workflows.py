"""The generator's twenty invented workflows (``workflows.txt``) and the kinds of their steps (``step_kinds.txt``).

Their ids, names and types are fixed, as on a real platform: dashboards, indexes and caches depend on few distinct
values. Payloads are ``%``-templates for the values of one run (see ``generate``), written as JSON without spaces, so
that a generated document is canonical.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

_USAGE = (
    '{"promptTokens":%(prompt)d,"completionTokens":%(completion)d,"totalTokens":%(tokens)d,'
    '"model":"%(model)s","estimatedCostUsd":%(cost)s}'
)


@dataclass(frozen=True, slots=True)
class StepKind:
    """A kind of step."""

    type: str
    """The step type in run documents: the part of the kind's name before the dot."""
    typical_ms: int
    model: str | None
    input: str | None
    output: str


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a step graph."""

    id: str
    prefix: str
    """Its JSON text up to the value of ``status``."""
    kind: StepKind
    after: tuple[int, ...]
    """The positions of the steps that it follows."""
    branch: bool | None
    """The result of the run's condition with which it is executed; None: any."""
    each: bool
    """Whether it is the body of the loop step above."""
    runs: str | None
    """The workflow that a sub-workflow step starts."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow. Its steps are in an order that respects their dependencies."""

    id: str
    trigger: str
    weight: int
    input: str
    output: str
    steps: tuple[Step, ...]


def _paragraphs(file: str) -> Iterator[tuple[list[str], dict[str, str], list[str]]]:
    """Yield the words of each paragraph's first line, its ``in`` and ``out`` texts, and its other lines.

    The first paragraph of a file explains it. A line that is indented by four spaces continues the one above.
    """
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    for paragraph in text.strip().split("\n\n")[1:]:
        first, *lines = paragraph.replace("\n    ", "").splitlines()
        payloads = {line[:4].strip(): line[4:] for line in lines if line.startswith(("in  ", "out "))}
        yield first.split(), payloads, [line for line in lines if not line.startswith(("in  ", "out "))]


def _step_kinds() -> dict[str, StepKind]:
    """Return the kinds of the table by name."""
    return {
        name: StepKind(
            type=name.partition(".")[0],
            typical_ms=int(typical_ms),
            model=model[0] if model else None,
            input=payloads.get("in"),
            output=payloads["out"].replace("USAGE", _USAGE),
        )
        for (name, typical_ms, *model), payloads, _ in _paragraphs("step_kinds.txt")
    }


def _steps(lines: list[str], kinds: dict[str, StepKind]) -> tuple[Step, ...]:
    steps: list[Step] = []
    positions: dict[str, int] = {}
    for position, line in enumerate(lines):
        id_, name, kind_name, words = (part.strip() for part in f"{line}|".split("|")[:4])
        kind = kinds[kind_name]
        flags = dict(word.partition(":")[::2] for word in words.split())
        after = [positions[other] for other in flags["after"].split(",")] if "after" in flags else [position - 1]
        identity = json.dumps({"id": id_, "name": name, "type": kind.type}, separators=(",", ":"))
        steps.append(
            Step(
                id=id_,
                prefix=f'{identity[:-1]},"status":"',
                kind=kind,
                after=tuple(after) if position else (),
                branch={"yes": True, "no": False}.get(flags.get("if", "")),
                each="each" in flags,
                runs=flags.get("runs"),
            )
        )
        positions[id_] = position
    return tuple(steps)


def workflows() -> tuple[Workflow, ...]:
    """Return the workflows of the table."""
    kinds = _step_kinds()
    return tuple(
        Workflow(id_, trigger, int(weight), payloads["in"], payloads["out"], _steps(lines, kinds))
        for (id_, trigger, weight), payloads, lines in _paragraphs("workflows.txt")
    )
