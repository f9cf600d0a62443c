"""The alerts: written by their source, told apart by promtool, explained in the runbooks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from alerts.__main__ import OUTPUT, rule_file
from alerts.rules import expression, seconds
from alerts.runbooks import PAGE, page
from alerts.source import SourceError, read

from operate.cases import CASES, LONG, Case
from support.servers.collector import CONFIG
from support.servers.programs import ROOT, require_program

WRITTEN: dict[str, Any] = yaml.safe_load(OUTPUT.read_text())
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in WRITTEN["groups"] for rule in group["rules"]}
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
ALWAYS = "RunspanWatchdog"
"""The one that has no case in which it does not fire."""


def test_the_rules_are_what_the_source_makes() -> None:
    """Nobody has edited the written files: `python -m alerts` makes the same texts."""
    assert OUTPUT.read_text() == rule_file()
    assert PAGE.read_text() == page(RUNBOOKS)


def promtool_files(directory: Path) -> list[str]:
    """The cases of each alert as promtool reads them, beside a rule file with that alert alone: it evaluates every rule
    of a file over every case."""
    files = []
    for name, cases in CASES.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [RULES[name]]}]}))
        tests = [promtool_test(name, case) for case in cases]
        often = next((interval for interval in (LONG, "1m") if any(case.interval == interval for case in cases)), "15s")
        content = {"rule_files": [f"{name}.yaml"], "evaluation_interval": often, "tests": tests}
        (directory / f"{name}-test.yaml").write_text(yaml.safe_dump(content))
        files.append(str(directory / f"{name}-test.yaml"))
    return files


def promtool_test(name: str, case: Case) -> dict[str, Any]:
    severity = RULES[name]["labels"]["severity"]
    head = f'alertname="{name}", alertstate="firing", severity="{severity}"'
    samples = [{"labels": f"ALERTS{{{', '.join(filter(None, (head, more)))}}}", "value": 1} for more in case.fires]
    look = {"expr": f'ALERTS{{alertname="{name}", alertstate="firing"}}', "eval_time": case.at, "exp_samples": samples}
    return {
        "name": f"{name}: {case.name}",
        "interval": case.interval,
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [look],
    }


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """promtool evaluates the written rules over every case, and finds the alerts that the case names and no others."""
    done = subprocess.run(
        [require_program("promtool"), "test", "rules", *promtool_files(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def test_each_alert_has_a_case_that_fires_it_and_one_that_does_not() -> None:
    """A rule without both could be true always, or never."""
    assert CASES.keys() == RULES.keys()
    for name, cases in CASES.items():
        assert any(case.fires for case in cases), name
        assert name == ALWAYS or not all(case.fires for case in cases), name


@pytest.mark.parametrize("name", RULES)
def test_each_alert_says_all_that_is_needed(name: str) -> None:
    """It has a for, a severity, a summary, a description, and a runbook whose section ends in a query and a link."""
    rule = RULES[name]
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in {"critical", "warning", "none"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "http://127.0.0.1:8321/runbooks"
    *_, query, link = sections()[anchor].strip().split("\n\n")
    assert re.fullmatch(r"```(promql|traceql)\n.+\n```", query)
    assert re.fullmatch(r"\[.+\]\(http://127\.0\.0\.1:\d+/\S*\)", link)


def sections() -> dict[str, str]:
    """The runbooks' sections by their anchors."""
    parts = re.split(r"^## (\w+)$", RUNBOOKS, flags=re.MULTILINE)[1:]
    return {name.lower(): text for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_every_section_of_the_runbooks_belongs_to_an_alert() -> None:
    """No section is left over from a rule that is gone, and they stand in the order of the rules."""
    assert list(sections()) == [name.lower() for name in RULES]


def test_the_approval_threshold_is_a_bound_of_the_histogram() -> None:
    """A bucket that does not exist would compare with nothing, and the alert would always fire."""
    connectors = yaml.safe_load(CONFIG.read_text())["connectors"]
    (metric,) = connectors["signal_to_metrics/unfinished"]["spans"]
    assert int(read().settings["approval_seconds"]) in metric["histogram"]["buckets"]


def test_a_site_changes_thresholds_without_editing_rules(tmp_path: Path) -> None:
    """Settings, severities and which alerts there are come from a file of the site's own."""
    site = tmp_path / "site.txt"
    site.write_text(
        "settings: {run_p95_seconds: 77, runbooks: 'https://wiki/runbooks'}\n"
        "alerts: {RunspanNoRuns: {enabled: false}, RunspanStepFailed: {severity: none, for: 2m}}\n"
    )
    made = {rule["alert"]: rule for group in yaml.safe_load(rule_file(site))["groups"] for rule in group["rules"]}
    assert made.keys() == RULES.keys() - {"RunspanNoRuns"}
    assert "> 77" in made["RunspanRunSlow"]["expr"]
    assert "77 seconds" in made["RunspanRunSlow"]["annotations"]["description"]
    assert made["RunspanStepFailed"]["labels"] == {"severity": "none"}
    assert made["RunspanStepFailed"]["for"] == "2m"
    assert made["RunspanRunFailed"]["annotations"]["runbook_url"] == "https://wiki/runbooks#runspanrunfailed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings: {run_p95: 1}", "run_p95"),
        ("alerts: {RunspanNoRun: {enabled: false}}", "RunspanNoRun"),
        ("alerts: {RunspanNoRuns: {colour: red}}", "colour"),
        ("alerts: {RunspanNoRuns: {severity: urgent}}", "urgent"),
        ("settings: {runbooks: docs/runbooks.md}", "runbooks"),
        ("settings: {runspan: 'runs.example.com:8321'}", "runspan"),
        ("thresholds: {}", "thresholds"),
        ("[]", "mapping"),
    ],
)
def test_a_site_file_with_a_mistake_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A threshold with a wrong name would silently change nothing."""
    site = tmp_path / "site.txt"
    site.write_text(text)
    with pytest.raises(SourceError, match=said):
        rule_file(site)


def test_one_setting_makes_every_link_of_runspan_absolute(tmp_path: Path) -> None:
    """`--external-url` replaces the address in all annotations; only Grafana has another one."""
    made = yaml.safe_load(rule_file(external_url="https://runs.example.com/ops/"))
    for rule in (rule for group in made["groups"] for rule in group["rules"]):
        links = {name: text for name, text in rule["annotations"].items() if name.endswith("_url")}
        assert links.pop("runbook_url") == f"https://runs.example.com/ops/runbooks#{rule['alert'].lower()}"
        assert links.get("runs_url", "https://runs.example.com/ops/").startswith("https://runs.example.com/ops/")
        assert links.get("traces_url", "http://127.0.0.1:3000/").startswith("http://127.0.0.1:3000/")
    with pytest.raises(SourceError, match="expected a URL"):
        rule_file(external_url="runs.example.com")


def test_an_expression_names_its_settings_or_is_refused() -> None:
    """A form in angle brackets that nobody fills in would be a comparison."""
    with pytest.raises(SourceError, match="nothing"):
        expression("x > <nothing>", {})
    with pytest.raises(SourceError, match="5 minutes"):
        seconds("5 minutes")
    assert seconds("1h30m") == 5400
