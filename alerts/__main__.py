"""``python -m alerts``: writes the rule file and the page of the runbooks, or says whether they are as they must be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from alerts.rules import rules
from alerts.runbooks import PAGE, RUNBOOKS, page
from alerts.source import SourceError, read

OUTPUT: Final = Path(__file__).parent.parent / "deploy" / "rules" / "runspan.yaml"
_HEAD: Final = "# Written by `python -m alerts` from alerts/alerts.yaml: change thresholds and texts there.\n"


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay readable."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def rule_file(site: Path | None = None, external_url: str | None = None) -> str:
    """The text of the rule file."""
    content: dict[str, Any] = rules(read(site, external_url=external_url))
    return _HEAD + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        "python -m alerts",
        description="Write the Prometheus rules of alerts/alerts.yaml, and the server's page of docs/runbooks.md.",
        epilog="Example: python -m alerts --external-url https://runs.example.com --output rules/runspan.yaml",
    )
    parser.add_argument("--site", type=Path, metavar="FILE", help="a site's own settings; see alerts/alerts.yaml")
    parser.add_argument(
        "--external-url", metavar="URL", help="runspan serve as browsers reach it, for the links in notifications"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=OUTPUT, help="default: deploy/rules/runspan.yaml"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is another")
    args = parser.parse_args()
    try:
        text = rule_file(args.site, args.external_url)
    except SourceError as error:
        print(f"python -m alerts: {error}", file=sys.stderr)  # noqa: T201  # a command's answer
        return 2
    files = {args.output: text}
    if args.output == OUTPUT:
        files[PAGE] = page(RUNBOOKS.read_text())
    if args.check:
        return int(any(not file.exists() or file.read_text() != content for file, content in files.items()))
    for file, content in files.items():
        file.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
