"""``python -m bench``: run sections of the benchmark, from the root of the repository, and print their ratios."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Goal
from bench.machine import description
from bench.page import COLUMNS, Measurement, cells, markdown
from bench.plan import Plan

_SCALE = Path(__file__).parent / "scale"
"""Where ``make bench-scale`` writes its figures as JSON."""
_FILE = click.Path(dir_okay=False, path_type=Path)
SECTIONS = (
    "encode",
    "export",
    "store",
    "serve",
    "memory",
    "workers",
    "pipe",
    "remote",
    "jaeger",
    "tempo",
    "recorder",
    "peers",
    "questions",
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1, type=click.Choice(SECTIONS), metavar="[SECTION]...")
@click.option("--runs", type=click.IntRange(0), default=0, help="Run documents a pass; 0: as the section chooses.")
@click.option("--rounds", type=click.IntRange(0), default=0, help="Rounds of taking turns; 0: as the section chooses.")
@click.option("--quick", is_flag=True, help="Small sizes: minutes instead of tens of minutes.")
@click.option("--full", is_flag=True, help="The store at a million runs too.")
@click.option("--scale", is_flag=True, help="Tempo at a million runs, the store at ten million: hours, 30 GB.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures here too, as JSON, after each section.")
@click.option("--page", type=_FILE, help="Write the figures here too, as a page in Markdown.")
def main(
    sections: tuple[str, ...],
    runs: int,
    rounds: int,
    quick: bool,
    full: bool,
    scale: bool,
    json_file: Path | None,
    page: Path | None,
) -> None:
    """Measure SECTIONs (all without one): encode, export, store, serve, memory, workers, pipe, remote, jaeger,
    tempo, recorder, peers, questions.

    A ratio is the best round of one contestant by the best of the other, in one run in which they took turns; its range
    is that of single rounds. Absolute times are shown as they go, and say nothing on another machine.
    """
    progress = Console(stderr=True, highlight=False)
    command = ["python", "-m", "bench", *sections, *_options(runs, rounds, quick=quick, full=full, scale=scale)]
    about = {"command": shlex.join(command), **description()}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="runspan-bench-") as folder:
        for name in sections or SECTIONS:
            part = Path(folder) / name
            part.mkdir()
            plan = Plan(part, runs, rounds, quick, full, scale, lambda words: progress.print(words, style="dim"))
            measure: Callable[[Plan], Iterable[Figure]] = import_module(f"bench.{name}").run
            figures += measure(plan)
            # What was measured is kept if a later section fails or there is no time left for it.
            if json_file is not None:
                content = {"about": about, "figures": [asdict(figure) for figure in figures]}
                json_file.parent.mkdir(parents=True, exist_ok=True)
                json_file.write_text(json.dumps(content, indent=1))
            if page is not None:
                page.write_text(markdown(about, figures, scaled()))
    console = Console(width=None if sys.stdout.isatty() else 140)
    for key, value in about.items():
        console.print(f"{key}: {value}", highlight=False, soft_wrap=True)
    console.print(table(figures))


def _options(runs: int, rounds: int, **flags: bool) -> list[str]:
    """Return the options that decide how much is measured."""
    sized = [f"--{name}={number}" for name, number in (("runs", runs), ("rounds", rounds)) if number]
    return sized + [f"--{name}" for name, given in flags.items() if given]


def scaled() -> list[Measurement]:
    """Return what ``make bench-scale`` has measured."""
    found: list[Measurement] = []
    for file in sorted(_SCALE.glob("*.json")):
        content = json.loads(file.read_text())
        made = [Figure(**{**each, "goal": each["goal"] and Goal(**each["goal"])}) for each in content["figures"]]
        found.append((content["about"], made))
    return found


def table(figures: Iterable[Figure]) -> Table:
    """Return the figures for people."""
    made = Table(title="best round by best round")
    for column in COLUMNS:
        made.add_column(column, justify="left" if column in ("section", "figure", "note") else "right")
    for figure in figures:
        made.add_row(*cells(figure))
    return made


if __name__ == "__main__":
    main()
