"""Three servers that forward to one Collector are killed one at a time while clients write through them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan import Run
from runspan.testing import generate
from runspan.web.api_keys import RUNS_READ, RUNS_WRITE
from support.faults import FaultLine
from support.replicas import CLIENTS, REPLICAS, Answer, Crowd, Site, kill_each, open_site, run_path, until
from support.servers.collector import Collector, start_collector
from support.servers.postgres import OwnPostgres
from support.web import JSON, PROTOBUF, otlp

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

RUNS = 1000
"""More than a client writes."""
SETTLED = 5.0
"""Seconds after which a correction has arrived: Tempo can lose spans that arrive while their trace is read."""
ACKNOWLEDGED = {"push": 202, "otlp": 200}


@dataclass
class Written:
    """A run that one client has sent."""

    acknowledged: bytes = b""
    """The text that was acknowledged last."""
    unanswered: list[bytes] = field(default_factory=list)
    """Those sent after it, which may be stored or not: nothing is sent after the first."""
    versions: list[bytes] = field(default_factory=list)
    is_read: bool = False
    at: float = 0.0
    """When it was acknowledged, in seconds of a clock that nobody sets."""

    @property
    def is_open(self) -> bool:
        """Whether it can be read and corrected now."""
        return (
            bool(self.acknowledged)
            and not self.unanswered
            and (len(self.versions) == 1 or time.monotonic() - self.at > SETTLED)
        )


class Writers(Crowd):
    """Clients that push documents, send OTLP, correct what they have read back, and read."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        start = datetime.now(UTC) - timedelta(days=1)
        self._new = [
            iter([Run.from_json(text) for text in generate(RUNS, seed=seed, start=start, span_days=0.5)])
            for seed in range(CLIENTS)
        ]
        self._revoked = site.make_revoked_key()
        self.written: list[dict[str, Written]] = [{} for _ in range(CLIENTS)]
        """What each client has sent, by run id."""

    def step(self, number: int, chance: random.Random) -> bool:
        kind, secret = chance.choice("ppooccrrv"), chance.choice(self.site.secrets)
        written = self.written[number]
        if kind == "v":
            text = next(self._new[number]).text
            return self.has(self.site.post("/api/v1/runs", self._revoked, text, JSON["Content-Type"]), 401)
        if kind in "cr":
            run_id = chance.choice([run_id for run_id, run in written.items() if run.is_open] or [""])
            if not run_id:
                return True
            if kind == "r" or not written[run_id].is_read:
                return self._read(run_id, written[run_id], secret)
            corrected = {**json.loads(written[run_id].acknowledged), "output": {"corrected": uuid4().hex}}
            return self._write("push", Run.from_dict(corrected), written[run_id], secret)
        run = next(self._new[number])
        return self._write("push" if kind == "p" else "otlp", run, written.setdefault(run.id, Written()), secret)

    def is_away(self, answer: Answer) -> bool:
        return answer.status == 503 and "retry-after" in answer.headers

    def _write(self, how: str, run: Run, written: Written, secret: str) -> bool:
        written.versions.append(run.text)
        if how == "push":
            answer = self.site.post("/api/v1/runs", secret, run.text, JSON["Content-Type"])
        else:
            body = otlp(run.to_dict(), tenant=self.site.tenant)
            answer = self.site.post("/v1/traces", secret, body, PROTOBUF["Content-Type"])
        right = self.has(answer, ACKNOWLEDGED[how], lambda body: how == "push" or _is_accepted(body))
        if answer.status == ACKNOWLEDGED[how]:
            written.acknowledged, written.at = run.text, time.monotonic()
        else:
            written.unanswered.append(run.text)
        return right

    def _read(self, run_id: str, written: Written, secret: str) -> bool:
        answer = self.site.get(run_path(run_id), secret)
        if answer.status == 404:  # the Collector has not delivered it
            return self.has(answer, 404)
        right = self.has(answer, 200, lambda body: any(text in body for text in written.versions))
        written.is_read = written.is_read or answer.status == 200
        return right


def _is_accepted(body: bytes) -> bool:
    return ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans == 0


@pytest.fixture(params=["tempo", "jaeger_memory"])
def collector(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Collector]]:
    """The URL of a backend, and a Collector before it whose queue is on disk."""
    backend: Any = request.getfixturevalue(request.param)
    collector = start_collector(tmp_path, runspan=backend.otlp)
    yield f"{request.param.partition('_')[0]}+{backend.url}", collector
    collector.stop()


@pytest.fixture
def site(collector: tuple[str, Collector], tmp_path: Path, own_postgres: OwnPostgres) -> Iterator[Site]:
    """Three servers that forward to the Collector."""
    url, receiver = collector
    permissions = [RUNS_READ, RUNS_WRITE]
    tenant = f"tenant-{uuid4().hex}"
    with open_site(tmp_path, own_postgres, url, tenant, permissions, "--forward-to", receiver.otlp) as site:
        yield site


def read_back(site: Site, base: str, runs: dict[str, Written]) -> None:
    """Return when a server has every run as it was acknowledged last, or one that was not answered. Never another."""
    left = set(runs)

    def is_there(run_id: str, written: Written) -> bool:
        answer = site.get(run_path(run_id), site.secrets[0], base)
        if answer.status != 200:
            assert answer.status in (404, 503), answer
            return not written.acknowledged and answer.status == 404
        assert any(text in answer.body for text in written.versions), answer
        assert "x-runspan-conflict" not in answer.headers, answer
        return any(text in answer.body for text in (written.acknowledged, *written.unanswered) if text)

    def all_there() -> bool:
        left.difference_update([run_id for run_id in left if is_there(run_id, runs[run_id])])
        return not left

    until(all_there, left)


def test_every_acknowledged_write_is_read_back_from_servers_that_were_killed(
    fault: FaultLine, site: Site, collector: tuple[str, Collector]
) -> None:
    """Documents, corrections and OTLP through whichever server: what a killed server had may be lost, nothing else."""
    with Writers(site) as crowd:
        lost = kill_each(crowd)
        crowd.go_on()
    assert crowd.wrong == []
    assert len(crowd.away) <= sum(crowd.statuses.values()) / 20
    assert lost <= 3 * CLIENTS
    runs = {run_id: run for written in crowd.written for run_id, run in written.items()}
    assert sum(bool(run.acknowledged) for run in runs.values()) >= CLIENTS
    assert any(len(run.versions) > 1 for run in runs.values())
    unanswered = sum(len(run.unanswered) for run in runs.values())
    assert unanswered <= lost + len(crowd.away)
    until(lambda: collector[1].own("otelcol_exporter_queue_size") == 0)
    for url in site.servers:
        read_back(site, url, runs)
    acknowledged = {run_id for run_id, run in runs.items() if run.acknowledged}
    until(lambda: acknowledged <= set(site.list(site.secrets[0], 200)))
    listed = site.list(site.secrets[0], 200)
    assert set(listed) <= runs.keys(), "what was sent with a revoked key is not there"
    fault.fault = f"SIGKILL of each of three servers, which left {lost} requests without an answer"
    fault.rounds, fault.refused, fault.twice = REPLICAS, len(crowd.away), len(listed) - len(set(listed))
    fault.acknowledged = sum(len(run.versions) - len(run.unanswered) for run in runs.values())
