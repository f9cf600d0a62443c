"""``python -m dashboards``: writes the JSON of every dashboard, or with ``--check`` names the files that differ."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dashboards import texts

FOLDER = Path(__file__).parent


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: python -m dashboards && git diff --stat dashboards",
)
@click.option("--check", is_flag=True, help="Write nothing; fail when a file differs from what the code makes.")
def main(check: bool) -> None:
    """Write the dashboards' JSON files beside their code, from the root of the repository."""
    stale = []
    for name, text in texts().items():
        file = FOLDER / name
        if file.exists() and file.read_text() == text:
            continue
        stale.append(name)
        if not check:
            file.write_text(text)
            click.echo(f"wrote {file.relative_to(FOLDER.parent)}")
    if check and stale:
        click.echo(f"not what the code makes: {', '.join(stale)}; run `python -m dashboards`", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m dashboards")
