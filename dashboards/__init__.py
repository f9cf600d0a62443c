"""Grafana dashboards as code: ``python -m dashboards`` writes the JSON files beside these modules."""

from __future__ import annotations

from dashboards import agents, overview, pipeline, run
from dashboards.parts import rendered

MADE = {
    "overview.json": overview.dashboard,
    "run.json": run.dashboard,
    "agents.json": agents.dashboard,
    "pipeline.json": pipeline.dashboard,
}
"""The file of each dashboard, and what makes it."""


def texts() -> dict[str, str]:
    """Every dashboard's JSON by the name of its file."""
    return {name: rendered(make()) for name, make in MADE.items()}
