"""Prometheus for tests: ``deploy/prometheus.yaml`` as it stands, with the targets of the test."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from support.servers.process import Program, answers, free_ports
from support.servers.programs import ROOT, require_program

CONFIG: Final = ROOT / "deploy" / "prometheus.yaml"
RULES: Final = ROOT / "deploy" / "rules"


@dataclass
class Prometheus:
    """A Prometheus that scrapes and evaluates. url: its address. Its data stays in its directory when it is killed."""

    url: str
    command: list[str]
    directory: Path
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Starts it, or starts it again at the same address; returns when it is ready."""
        self.program = Program(self.command, self.directory)
        self.program.wait_until(lambda: answers(f"{self.url}/-/ready"))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression now, or one sample without labels of a scalar."""
        data = self._get("/api/v1/query", query=expression)
        result: Any = data["result"]
        return [{"metric": {}, "value": result}] if data["resultType"] in {"scalar", "string"} else result

    def exemplars(self, series: str, start: float, end: float) -> list[dict[str, Any]]:
        """The exemplars of a series between two times, seconds since 1970."""
        found: list[dict[str, Any]] = self._get("/api/v1/query_exemplars", query=series, start=start, end=end)
        return [exemplar for item in found for exemplar in item["exemplars"]]

    def alerts(self, name: str = "", state: str = "firing") -> list[dict[str, Any]]:
        """The alerts in this state, of one rule or of all."""
        found = self._get("/api/v1/alerts")["alerts"]
        return [alert for alert in found if alert["state"] == state and name in {"", alert["labels"]["alertname"]}]

    def times(self, series: str, since: float, until: float | None = None) -> list[float]:
        """When a series was scraped after one time and up to another, seconds since 1970."""
        now = time.time()
        found = self.query(f"{series}[{max(1, round(now - since))}s]")
        moments = [moment for item in found for moment, _ in item["values"]]
        return [moment for moment in moments if since < moment <= (now if until is None else until)]

    def names(self) -> set[str]:
        """Every metric name that was scraped."""
        return set(self._get("/api/v1/label/__name__/values"))

    def up(self) -> dict[str, bool]:
        """Whether the last scrape of each job succeeded. Jobs that were not scraped yet are missing."""
        return {item["metric"]["job"]: item["value"][1] == "1" for item in self.query("up")}

    def stop(self) -> None:
        """Ends it."""
        self.program.stop()

    def _get(self, path: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}{path}", params=params, timeout=30, trust_env=False)
        body = answer.json()
        if body["status"] != "success":
            raise AssertionError(f"{params}: {body['error']}")
        return body["data"]


def backfill(directory: Path, lines: Iterable[str]) -> None:
    """Give the Prometheus that will start in a directory samples of the past. lines: of OpenMetrics."""
    file = directory / "history.txt"
    file.write_text("\n".join(lines) + "\n")
    command = [require_program("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(file)]
    subprocess.run([*command, str(directory / "tsdb")], check=True, capture_output=True)


def start_prometheus(
    directory: Path, targets: Mapping[str, str], *, alertmanager: str = "", rules: Path = RULES
) -> Prometheus:
    """A Prometheus in a directory. targets: by the name of the scrape job, host:port; other jobs are left out."""
    (port,) = free_ports(1)
    settings = config(targets, alertmanager, rules)
    for job in settings["scrape_configs"]:
        if job["job_name"] == "prometheus":
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    file = directory / "prometheus.json"
    file.write_text(json.dumps(settings))  # JSON is YAML
    command = [
        require_program("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        # Default 1m: what fires in the first 5 s, before Prometheus knows its Alertmanager, is told so much later.
        "--rules.alert.resend-delay=5s",
    ]
    return Prometheus(f"http://127.0.0.1:{port}", command, directory)


def config(targets: Mapping[str, str], alertmanager: str, rules: Path) -> dict[str, Any]:
    """The file's settings with other addresses."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    settings["rule_files"] = [str(rules / Path(pattern).name) for pattern in settings["rule_files"]]
    jobs = [job for job in settings["scrape_configs"] if job["job_name"] in {"prometheus", *targets}]
    for job in jobs:
        job.pop("file_sd_configs", None)
        job["static_configs"] = [{"targets": [targets.get(job["job_name"], "")]}]
    settings["scrape_configs"] = jobs
    settings["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager] if alertmanager else []}]
    return settings
