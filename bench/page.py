"""Figures as text: the cells of a table, and the page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from bench.figures import Figure

Measurement = tuple[Mapping[str, str], Sequence[Figure]]
"""What is known about the machine, and the figures."""

COLUMNS = ("section", "figure", "value", "single rounds", "by CPU time", "goal", "met", "note")

_INTRODUCTION = """\
# Figures

Ratios, each of one run in which the contestants took turns: the best round of one by the best round of the other.
"Single rounds" is the range of the ratio within a round. "By CPU time" is the same ratio by processor time, which other
work on the machine disturbs less than the clock. Absolute times are not given, because they mean nothing elsewhere.
Goals that are missed say NO.
`python -m bench --page bench/FIGURES.md` writes this page; `--full` adds the store of a million runs. Sections without
figures below were not measured in this run. "At scale" is what takes hours, measured by `make bench-scale`.

What is compared:

- **encode**: a document's text to OTLP bytes, against `orjson.loads` and the protobuf library's serialising of messages
  that were made before, which no exporter could use; and the SDK's encoder on spans made before.
- **export**: an NDJSON file until every request is acknowledged, on one core, the receiver on the other. *Stock* is the
  OpenTelemetry SDK with its batch processor and OTLP/HTTP exporter, a queue that holds everything, and the attributes
  that runspan's spans have but for digest, manifest and revision. The *floor* parses each document and sends bytes
  that were encoded before. Every span sent is counted at the receiver.
- **store**: the embedded store in this process; the stores of all sizes are open at once and take turns. *Get* is of
  a run whose pages another connection has just read, so that they are in memory. Pages of a large file that were not
  read lately come from the disk, or on a virtual machine from wherever its host keeps them: "not read before".
- **serve**: eight persistent connections from another process; the server has a core to itself.
- **memory**: the peak resident memory of `runspan export`, and of `runspan serve` with its defaults.
- **workers**: the command `runspan export` of a large file with one and with two workers, from its start to its end, on
  two cores, which the receiver shares. It responds at once, and counts the spans only afterwards. One worker uses more
  than one core, because its requests are compressed and sent while it encodes.
- **pipe**: a file into a real `runspan serve` until every run is durable and can be read, which is checked for each
  run. The stock side sends the same spans, with ids and attributes computed before the clock starts.
- **recorder**: what a step costs an engine under the Recorder, against plain spans of the SDK with its batch processor.
- **remote**: a reader's time beyond what passes in its HTTP client, which is counted as the backend's own. A list over
  Jaeger fetches whole traces, which have to be parsed, and Jaeger's memory responds about as fast as that can be done;
  what was in an earlier response is compared with it instead, byte by byte. "Never listed before" is without that.
- **jaeger**: lists and reads over a Jaeger, against the cheapest request of Jaeger's own API for the same runs: one
  search of exactly their time, whose response is not decoded. "Never listed before" has to find that time first.
- **tempo**: lists and reads over a Tempo, against the cheapest search of Tempo's own that finds the same runs, without
  their attributes, and its own trace request; with the settings of deploy/tempo.yaml, and without dedicated columns.
- **peers**: processor time of a server that receives the same spans in the same requests and makes them durable; of
  Tempo and Jaeger with the settings of deploy/. "At rest" is when it uses hardly any processor time, after its
  background work; Phoenix stores spans after it has acknowledged them, so it is read only then.
"""


def cells(figure: Figure) -> list[str]:
    """Return one row, a cell for each of ``COLUMNS``."""
    return [
        figure.section,
        figure.name,
        f"{figure.value:.3g} {figure.unit}",
        "" if figure.low is None or figure.high is None else f"{figure.low:.3g} to {figure.high:.3g}",
        "" if figure.cpu is None else f"{figure.cpu:.3g} {figure.unit}",
        "" if figure.goal is None else str(figure.goal),
        "" if figure.goal is None else "yes" if figure.goal.met(figure.value) else "NO",
        figure.note,
    ]


def markdown(about: Mapping[str, str], figures: Sequence[Figure], scaled: Iterable[Measurement] = ()) -> str:
    """Return the page.

    scaled: what ``make bench-scale`` measured, each with what is known about its machine.
    """
    scaled = list(scaled)
    lines = [_INTRODUCTION, *_table(figures), "", "## Missed", ""]
    everything = chain(figures, *[measured for _, measured in scaled])
    missed = [figure for figure in everything if figure.goal is not None and not figure.goal.met(figure.value)]
    lines += [f"- {each.section}: {each.name} is {each.value:.3g}, the goal {each.goal}." for each in missed]
    lines += [] if missed else ["No goal."]
    lines += ["", "## Where", "", *_where(about)]
    for number, (machine, measured) in enumerate(scaled):
        lines += ["", *([] if number else ["## At scale", ""]), *_table(measured), "", *_where(machine)]
    return "\n".join(lines) + "\n"


def _table(figures: Iterable[Figure]) -> list[str]:
    return [_row(COLUMNS), _row(["---"] * len(COLUMNS)), *(_row(cells(figure)) for figure in figures)]


def _where(about: Mapping[str, str]) -> list[str]:
    rows = [(key, f"`{value}`" if key == "command" else value) for key, value in about.items()]
    return [_row(("what", "value")), _row(("---", "---")), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
