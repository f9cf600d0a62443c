"""The benchmark runs: each section, at its smallest, measures what it says and loses nothing on the way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.figures import Figure, at_most
from bench.page import markdown

pytest.importorskip("orjson", reason="the benchmark's own dependency group is not installed")

ROOT = Path(__file__).parent.parent

FIGURES = {
    "encode": {"ours / (orjson + upb of ready messages)", "SDK encoder of ready spans / ours with parse"},
    "export": {"stock / ours", "stock gzip / ours gzip", "stock / floor", "spans lost, ours"},
    "store": {
        "disk / raw JSON at 200 runs",
        "get p50, 200 / 20 runs",
        "ingest rate in order of time, 200 / 20 runs stored",
        "ingest rate, 200 / 20 runs stored",
        "ingest rate, durable / synchronous off",
    },
    "serve": {"rate of get / Flask hello", "rate of list, with a key / Flask hello"},
    "workers": {"one worker / two", "one worker on one core / two on two", "processor time of two workers / of one"},
    "memory": {"peak on a file of 1 MB", "peak on a file of 4 MB", "peak of serve, 4 MB received and read"},
    "pipe": {"stock / ours, file to queryable"},
    "recorder": {"engine's thread, recorder / SDK", "all threads until delivered, recorder / SDK"},
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)


LONG = {"export", "pipe", "recorder", "serve", "workers"}
"""Sections that take several seconds of processor time."""


@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=[pytest.mark.campaign] if name in LONG else []) for name in sorted(FIGURES)]
)
def test_a_section_measures_what_it_says(section: str, tmp_path: Path) -> None:
    """A tiny run of the section ends well, and its figures are there as finite numbers beside machine and versions."""
    file, page = tmp_path / "figures.json", tmp_path / "figures.md"
    size = ["--quick", "--runs", "200", "--rounds", "1"]
    done = bench(section, *size, "--json", str(file), "--page", str(page))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(file.read_text())
    values = {figure["name"]: figure["value"] for figure in result["figures"]}
    assert FIGURES[section] <= set(values)
    assert all(math.isfinite(value) and value >= 0 for value in values.values())
    assert {figure["section"] for figure in result["figures"]} == {section}
    assert {"date", "commit", "processor", "cores", "Python", "runspan", "msgspec"} <= set(result["about"])
    assert result["about"]["command"] == f"python -m bench {section} --runs=200 --rounds=1 --quick"
    for name in values:
        assert f"| {name} |" in page.read_text()


def test_the_page_has_what_was_measured_at_scale() -> None:
    """Its tables are those of the files that are there, each with its machine, and missed goals are listed."""
    missed = Figure("store", "get", 3.0, goal=at_most(2))
    page = markdown({"date": "today"}, [Figure("encode", "ours", 1.0)], [({"date": "yesterday"}, [missed])])
    assert "- store: get is 3, the goal ≤ 2." in page
    first, second = page.split("## At scale")
    assert "| date | today |" in first
    assert "| encode | ours | 1 x |" in first
    assert "| store | get | 3 x |" in second
    assert "| date | yesterday |" in second


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    """The usage error names the sections."""
    done = bench("nothing")
    assert done.returncode == 2
    assert "encode" in done.stderr


@pytest.mark.campaign
def test_the_sink_of_our_export_loses_nothing(tmp_path: Path) -> None:
    """Against a receiver that answers late, every span of ours arrives: zero percent lost, exactly."""
    file = tmp_path / "figures.json"
    done = bench("export", "--runs", "300", "--rounds", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    values = {figure["name"]: figure["value"] for figure in json.loads(file.read_text())["figures"]}
    assert values["spans lost, ours"] == 0
