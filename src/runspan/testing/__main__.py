"""``python -m runspan.testing``: write generated run documents to standard output, one per line."""

from __future__ import annotations

import sys
from itertools import islice

import click

from .generate import generate


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: python -m runspan.testing --count 1000 | runspan export -",
)
@click.option("--count", type=click.IntRange(min=0), required=True, help="How many run documents to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed generates the same bytes.")
@click.option(
    "--unfinished",
    is_flag=True,
    help="Leave three runs in a hundred running, suspended or pending. Without it every run has ended.",
)
def main(count: int, seed: int, unfinished: bool) -> None:
    """Write run documents as NDJSON to standard output.

    The documents resemble those of a company with twenty workflows: about 2.7 KB and 5.5 steps per run, started within
    90 days from 2026-10-01, in random order. No clock is read.
    """
    documents = generate(count, seed=seed, unfinished=unfinished)
    while batch := list(islice(documents, 500)):
        sys.stdout.buffer.write(b"\n".join(batch) + b"\n")


if __name__ == "__main__":
    main(prog_name="python -m runspan.testing")
