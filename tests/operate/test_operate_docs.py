"""``docs/operate.md`` and ``docs/sizing.md``: what they tell to paste is taken by the real programs, and their figures
are those that were measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from operate.boards import BOARDS, ROOT
from operate.fresh import whole, write
from support.cli import environment
from support.receivers import http_receiver
from support.servers.collector import CONFIG, total
from support.servers.process import Program, answers, free_ports
from support.servers.programs import require_program

OPERATE = (ROOT / "docs" / "operate.md").read_text()
SIZING = (ROOT / "docs" / "sizing.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def block(heading: str, language: str) -> str:
    """The first block of code in this language below a heading."""
    section = OPERATE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found[1]


def test_the_addresses_are_those_of_compose() -> None:
    """Every port that compose publishes for people stands in the table, and no other."""
    table = OPERATE.split("## The whole stack", 1)[1].split("runspan listens", 1)[0]
    told = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", table)}
    published = {
        int(port.split(":")[1])
        for name, service in COMPOSE["services"].items()
        for port in service.get("ports", ())
        if name not in {"tempo", "jaeger"} or port.split(":")[2] in {"3200", "16686"}
    }
    assert told == published


def test_the_lines_for_a_tempo_are_those_of_its_configuration() -> None:
    """Each setting has the value of ``deploy/tempo.yaml``."""
    whole_file = yaml.safe_load((ROOT / "deploy" / "tempo.yaml").read_text())

    def compare(told: Any, real: Any) -> None:
        for name, value in told.items():
            if isinstance(value, dict):
                compare(value, real[name])
            else:
                assert real[name] == value, name

    compare(yaml.safe_load(block("In a Tempo that you have", "yaml")), whole_file)


def test_the_lines_for_a_prometheus_are_those_of_its_configuration(tmp_path: Path) -> None:
    """The jobs are those that ``deploy/prometheus.yaml`` has beside Prometheus' and Alertmanager's own, and promtool
    takes them."""
    text = block("In a Prometheus that you have", "yaml")
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    real = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())["scrape_configs"]
    assert jobs == {job["job_name"]: job for job in real if job["job_name"] not in {"prometheus", "alertmanager"}}
    (tmp_path / "prometheus.yaml").write_text(text)
    command = [require_program("promtool"), "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_site_writes_its_own_rules(tmp_path: Path) -> None:
    """The site's file is taken, and its addresses, thresholds and severities are in the rules."""
    section = OPERATE.split("Thresholds, severities", 1)[1]
    found = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert found
    (tmp_path / "site.yaml").write_text(found[1])
    output = tmp_path / "rules.yaml"
    command = [sys.executable, "-m", "alerts", "--site", str(tmp_path / "site.yaml"), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rules = {rule["alert"]: rule for group in yaml.safe_load(output.read_text())["groups"] for rule in group["rules"]}
    assert rules["RunspanStepFailed"]["labels"]["severity"] == "none"
    assert "https://runs.example.com" in rules["RunspanRunFailed"]["annotations"]["runs_url"]
    assert rules["RunspanCostBudget"]["expr"].endswith("> 500")


YOURS = """
receivers:
  otlp/yours: {{protocols: {{http: {{endpoint: 127.0.0.1:{http}}}}}}}
processors:
  batch/yours: {{timeout: 100ms}}
exporters:
  otlp_grpc/yours: {{endpoint: 127.0.0.1:1}}
  otlp_http/yours: {{endpoint: "{behind}", compression: none}}
service:
  extensions: []
  pipelines:
    traces:
      receivers: [otlp/yours]
      processors: [batch/yours]
"""
"""A Collector that somebody has, up to the lines that the documentation adds."""


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """As the Collector merges files: objects member by member, all else replaced."""
    found = dict(first)
    for name, value in second.items():
        known = found.get(name)
        found[name] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return found


def test_the_lines_for_a_collector_make_it_count_runs(tmp_path: Path) -> None:
    """A Collector of somebody's own, with these lines and our file before it, hands the spans on as before, and counts
    the runs among them."""
    lines = block("In a Collector that you have", "yaml").replace("otlp_grpc/yours", "otlp_http/yours")
    http, check, *others = free_ports(7)
    names = ("GRPC", "HTTP", "SPANS", "HEALTH", "OWN")
    env = {f"RUNSPAN_COLLECTOR_{name}_PORT": str(port) for name, port in zip(names, others, strict=True)}
    env["RUNSPAN_COLLECTOR_CHECK_PORT"] = str(check)
    with http_receiver() as receiver:
        yours = merged(yaml.safe_load(YOURS.format(http=http, behind=receiver.url)), yaml.safe_load(lines))
        file = tmp_path / "yours.yaml"
        file.write_text(yaml.safe_dump(yours))
        program = require_program("otelcol")
        command = [program, "--config", str(CONFIG), "--config", str(file)]
        done = subprocess.run(
            [program, "validate", *command[1:]],
            env={**environment(), **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        collector = Program(command, tmp_path, {**os.environ, **env})
        spans = f"http://127.0.0.1:{others[2]}"
        try:
            collector.wait_until(lambda: answers(f"{spans}/metrics"))
            documents = write(tmp_path / "runs.ndjson", [whole(time.time_ns())])
            export = [
                sys.executable,
                "-m",
                "runspan",
                "export",
                str(documents),
                "--endpoint",
                f"http://127.0.0.1:{http}",
            ]
            done = subprocess.run(export, env=environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            deadline = time.monotonic() + 20
            while total(spans, "runspan_runs_total", {"runspan_run_status": "failed"}) != 1:
                assert time.monotonic() < deadline, collector.log.read_text()[-2000:]
                time.sleep(0.1)
            assert receiver.taken_runs
        finally:
            collector.stop()


def figures() -> dict[str, float]:
    """The values of the benchmark's page by figure."""
    page = (ROOT / "bench" / "FIGURES.md").read_text().partition("## At scale")[0]
    rows = re.findall(r"^\| (\w+) \| ([^|]+?) \| ([\d.]+) ", page, re.MULTILINE)
    return {f"{section}: {figure}": float(value) for section, figure, value in rows}


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ("memory: peak on a file of 500 MB", r"\| 3 s \| (\d+) MB, whatever"),
        ("store: disk / raw JSON at 1,000,000 runs", r"([\d.]+) to [\d.]+ of the raw JSON"),
        ("store: disk / raw JSON at 10,000 runs", r"to ([\d.]+) of the raw JSON"),
        ("store: ingest rate, 1,000,000 / 100,000 runs stored", r"falls to ([\d.]+) between"),
        ("store: list of 50 p50, 1,000,000 / 10,000 runs", r"runs takes ([\d.]+) times that of ten thousand"),
        ("store: get p50, 1,000,000 / 10,000 runs", r"a `GET` by id ([\d.]+) times"),
    ],
)
def test_figures_are_those_of_the_benchmark(figure: str, text: str) -> None:
    """A figure that is measured anew and has moved by more than a tenth is told anew."""
    found = re.search(text, " ".join(SIZING.split()))
    assert found
    assert float(found[1]) == pytest.approx(figures()[figure], rel=0.1)


def test_the_dashboards_are_named() -> None:
    """Each by its title."""
    assert all(f"| {board['title']} |" in OPERATE for board in BOARDS.values())
