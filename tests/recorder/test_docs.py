"""The code of docs/recorder.md and docs/agents.md runs, and the numbers on the former are those of the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from runspan import Recorder
from runspan.recorder import ExportConfig, RecorderReport
from support.receivers import http_receiver
from support.recorder import WAIT, Harness

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "recorder.md").read_text()


@pytest.mark.parametrize(
    ("page", "run", "foreign"),
    [
        ("recorder", "called", {"GET /v1/invoices", "run wf_joined (copy)", "charge"}),
        ("agents", "researcher", set()),
    ],
)
def test_the_code_runs_and_its_runs_arrive(
    monkeypatch: pytest.MonkeyPatch, page: str, run: str, foreign: set[str]
) -> None:
    """Every block runs, one after the other, against a real receiver that the environment names."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: None)  # it can be set only once in a process
    names: dict[str, Any] = {}
    with http_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        monkeypatch.setattr(trace, "get_tracer", _tracer_of(names))
        for block in blocks:
            if "report.complete" in block:
                assert names["recorder"].flush(WAIT)
            exec(compile(block, f"docs/{page}.md", "exec"), names)
        recorder: Recorder = names["recorder"]
        harness = Harness(receiver, recorder)
        assert recorder.shutdown(WAIT).complete
        assert harness.document(names[run].id) == names[run].document()
        assert {span.name for span in harness.foreign_spans} == foreign


def _tracer_of(names: dict[str, Any]) -> Callable[[str], trace.Tracer]:
    """Return ``get_tracer`` of the recorder that the page makes."""

    def get_tracer(name: str) -> trace.Tracer:
        tracer: trace.Tracer = names["recorder"].tracer_provider.get_tracer(name)
        return tracer

    return get_tracer


def test_the_defaults_on_the_page_are_those_of_the_code() -> None:
    """The times, bounds and names that the page mentions."""
    config = ExportConfig()
    assert (config.snapshot_delay, config.heartbeat_interval, config.max_pending_bytes) == (0.1, 30.0, 64 << 20)
    assert "0.1 s later" in PAGE
    assert "a revision after 30 s, and later after a sixteenth of its age" in PAGE
    assert "64 MiB" in PAGE
    assert {"inexact_payloads", "runs_ended", "complete"} <= set(dir(RecorderReport))
