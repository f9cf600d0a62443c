"""What the tests of dashboards share: the files, their panels, and the queries in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "dashboards").glob("*.json"))
BOARDS: dict[str, dict[str, Any]] = {file.name: json.loads(file.read_text()) for file in FILES}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard without its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def every_panel() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in BOARDS.items():
        for panel in panels(board):
            yield name, panel


def targets(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Every query to this kind of data source: where it stands, and the target."""
    return [
        (f"{name}: {panel['title']} {target['refId']}", target)
        for name, panel in every_panel()
        for target in panel["targets"]
        if target["datasource"]["type"] == kind
    ]


def filled_in(expression: str, values: dict[str, str]) -> str:
    """The expression with its variables replaced, as ``$name``, ``${name}`` or ``${name:format}``."""
    for name, value in values.items():
        literal = value.replace("\\", "\\\\")
        expression = re.sub(rf"\$\{{{name}(?::\w+)?\}}|\${name}\b", literal, expression)
    assert "$" not in expression, f"a variable without a value: {expression}"
    return expression
