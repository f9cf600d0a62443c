"""For every alert what fires it and what does not: series as promtool writes them, and the time to look.

``SERIES`` says when: a value every interval, ``_`` for none. ``1x8`` is nine times 1, ``0+5x8`` counts by fives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WATCHED = {'up{job="span-metrics", instance="c:8889"}': "1x2000", "otelcol_process_uptime": "100000+15x2000"}
"""Prometheus has looked at the Collector all the time, and the Collector is old."""
WF = 'job="team/runspan", runspan_workflow_id="wf"'
STEP = f'{WF}, runspan_step_id="charge", runspan_step_type="stripe"'
TEMPO = 'job="collector", instance="c:8888", exporter="otlp_grpc/tempo"'
COLLECTOR = 'job="collector", instance="c:8888"'
OTLP = f'{COLLECTOR}, receiver="otlp", transport="http"'
RULES = 'job="prometheus", instance="p:9090"'
NOTIFIED = 'job="alertmanager", instance="a:9093", integration="webhook"'
SYNC = 'job="runspan", instance="sync:9464"'
SERVER = 'job="runspan", instance="runspan:8321"'
OTHER_SERVER = 'job="runspan", instance="other:8321"'
FAILED = f'runspan_runs_total{{{WF}, runspan_run_status="failed"}}'
ENDED = f'runspan_runs_total{{{WF}, runspan_run_status="completed"}}'


LONG = "10m"
"""The interval of cases that take days."""


def _of(start: str, series: str) -> str:
    """The series as one start of the Collector exports it."""
    return f'{series.removesuffix("}")}, signal_to_metrics_service_instance_id="{start}"}}'


@dataclass(frozen=True)
class Case:
    """name: what is the case. at: when to look. fires: the labels of the alerts then, beside name and severity."""

    name: str
    at: str
    series: dict[str, str]
    fires: list[str] = field(default_factory=list)
    interval: str = "15s"


def _case(name: str, at: str, series: dict[str, str], *fires: str, interval: str = "15s") -> Case:
    return Case(name, at, WATCHED | series, list(fires), interval)


_RUN = f'{WF}, runspan_run_status="failed"'
_COST = f"runspan_run_cost_USD_total{{{WF}}}"
_LATE = "_x30 "
"""Not there for the first seven and a half minutes."""


_STUCK_WF = 'runspan_workflow_id="wf"'


def _stuck(workflow: str) -> str:
    """The series of the age of a workflow's stuck runs."""
    return f'runspan_runs_stuck_age_seconds{{{SERVER}, runspan_workflow_id="{workflow}"}}'


def _latency(role: str, labels: str, slow: bool, every: str = "0+1x200") -> dict[str, str]:
    """The buckets of a histogram of durations, of which all, or none, are over an hour."""
    name = f'traces_span_metrics_duration_seconds_bucket{{{labels}, runspan_role="{role}"'
    return {
        f'{name}, le="60"}}': "0x200" if slow else every,
        f'{name}, le="3600"}}': "0x200" if slow else every,
        f'{name}, le="10800"}}': every,
        f'{name}, le="+Inf"}}': every,
        f'traces_span_metrics_duration_seconds_count{{{labels}, runspan_role="{role}"}}': every,
    }


def _tokens(each: str) -> dict[str, str]:
    """Tokens of runs, as many in as out."""
    return {f"runspan_run_tokens_{way}_total{{{WF}}}": each for way in ("input", "output")}


def _waiting(older: str) -> dict[str, str]:
    """Revisions of a suspended run, one each interval, of which so many are younger than four hours."""
    labels = f'{WF}, runspan_run_status="suspended"'
    return {
        f'runspan_unfinished_age_seconds_bucket{{{labels}, le="14400.0"}}': older,
        f'runspan_unfinished_age_seconds_bucket{{{labels}, le="+Inf"}}': "0+1x200",
        f"runspan_unfinished_age_seconds_count{{{labels}}}": "0+1x200",
    }


def _waited(minutes: int) -> dict[str, str]:
    """The first revision of a suspended run, over four hours old, after so many minutes."""
    return {name: f"_x{minutes} {int('14400' not in name)}x400" for name in _waiting("")}


def _counted_by_processes(counter: str) -> list[Case]:
    """What processes of runspan count, maybe before Prometheus sees the counter for the first time."""
    first, second = (f'{counter}{{{SYNC}, runspan_started="{start}"}}' for start in ("a", "b"))
    return [
        _case("before the first scrape of a process", "8m", {first: f"{_LATE}3x60"}, SYNC),
        _case("as many after a start of the process as before", "8m15s", {first: "3x30", second: "_x32 3x60"}, SYNC),
        _case("fewer than before", "8m15s", {first: "3x30", second: "_x32 1x60"}, SYNC),
        _case("none since it started again", "8m15s", {first: "3x30", second: "_x32 0x60"}),
        _case("a Prometheus that starts beside a process that has counted for long", "1m", {first: "900x60"}),
        _case("the window is over", "14m", {first: f"{_LATE}3x60"}),
        _case("none", "5m", {first: "0x60"}),
    ]


def _suspended(age: str) -> dict[str, str]:
    """The age of a workflow's suspended run in the embedded store."""
    return {
        f"runspan_runs_suspended_age_seconds{{{SERVER}, {_STUCK_WF}}}": age,
        f"runspan_store_runs{{{SERVER}}}": "9x400",
    }


CASES: dict[str, list[Case]] = {
    "RunspanRunFailed": [
        _case("the first failure of a workflow, born at 1", "8m", {FAILED: f"{_LATE}1x60"}, _RUN),
        _case("one more failure", "8m", {FAILED: "7x30 8x60"}, _RUN),
        _case(
            "runs that ran out of time",
            "8m",
            {FAILED.replace("failed", "timed_out"): f"{_LATE}2x60"},
            f'{WF}, runspan_run_status="timed_out"',
        ),
        _case(
            "a first failure after the Collector started again",
            "8m",
            {
                FAILED: f"{_LATE}1x60",
                "otelcol_process_uptime": "_x26 5+15x60",
                'up{job="span-metrics", instance="c:8889"}': "_x26 1x60",
            },
            _RUN,
        ),
        _case(
            "still, when the Collector is older than the window and Prometheus has watched it for less",
            "8m",
            {
                FAILED: f"{_LATE}1x60",
                "otelcol_process_uptime": "_x26 270+15x60",
                'up{job="span-metrics", instance="c:8889"}': "_x26 1x60",
            },
            _RUN,
        ),
        _case(
            "one before the Collector started again, and one after",
            "8m15s",
            {
                _of("a", FAILED): "1x30",
                _of("b", FAILED): "_x32 1x60",
                "otelcol_process_uptime": "_x31 5+15x60",
                'up{job="span-metrics", instance="c:8889"}': "1x30 0 1x60",
            },
            _RUN,
        ),
        _case(
            "one before the Collector and Prometheus started again, and one after",
            "10m15s",
            {
                _of("a", FAILED): "1x30",
                _of("b", FAILED): "_x40 1x60",
                "otelcol_process_uptime": "_x39 5+15x60",
                'up{job="span-metrics", instance="c:8889"}': "1x30 _x8 1x60",
            },
            _RUN,
        ),
        _case(
            "one after the Collector was down for longer than the window",
            "20m15s",
            {
                _of("a", FAILED): "1x30",
                _of("b", FAILED): "_x80 1x60",
                "otelcol_process_uptime": "_x79 5+15x60",
                'up{job="span-metrics", instance="c:8889"}': "1x30 0x48 1x60",
            },
            _RUN,
        ),
        _case(
            "one while Prometheus was away",
            "20m15s",
            {FAILED: "9x20 _x60 10x60", 'up{job="span-metrics", instance="c:8889"}': "1x20 _x60 1x60"},
            _RUN,
        ),
        _case(
            "none since the Collector started again",
            "8m15s",
            {
                _of("a", FAILED): "1x30",
                _of("b", ENDED): "_x32 1x60",
                "otelcol_process_uptime": "_x31 5+15x60",
                'up{job="span-metrics", instance="c:8889"}': "1x30 0 1x60",
            },
        ),
        _case("the window is over", "14m", {FAILED: f"{_LATE}1x60"}),
        _case("other ends", "8m", {ENDED: f"{_LATE}1x60", ENDED.replace("completed", "cancelled"): "0+1x60"}),
        _case("a Prometheus that starts beside a Collector that has counted for long", "1m", {FAILED: "900x60"}),
        _case(
            "Prometheus was away for a while",
            "21m",
            {FAILED: "9x20 _x60 9x60", 'up{job="span-metrics", instance="c:8889"}': "1x20 _x60 1x60"},
        ),
    ],
    "RunspanStepFailed": [
        _case(
            "the first failure of a step",
            "8m",
            {f'runspan_steps_total{{{STEP}, runspan_step_status="failed"}}': f"{_LATE}1x60"},
            STEP,
        ),
        _case(
            "steps that were skipped or completed",
            "8m",
            {
                f'runspan_steps_total{{{STEP}, runspan_step_status="skipped"}}': f"{_LATE}1x60",
                f'runspan_steps_total{{{STEP}, runspan_step_status="completed"}}': "0+1x60",
            },
        ),
    ],
    "RunspanFailureBudgetBurnFast": [
        _case("a fifth of the runs fails", "30m", {FAILED: "0+1x200", ENDED: "0+4x200"}, WF),
        _case("from the workflow's first run on", "12m", {FAILED: f"{_LATE}1+1x200", ENDED: f"{_LATE}4+4x200"}, WF),
        _case("one of a hundred", "30m", {FAILED: "0+1x200", ENDED: "0+99x200"}),
        _case("one failure among three runs", "8m", {FAILED: f"{_LATE}1x60", ENDED: f"{_LATE}2x60"}),
        _case("it has stopped", "30m", {FAILED: "0+1x60 60x200", ENDED: "0+4x300"}),
    ],
    "RunspanFailureBudgetBurnSlow": [
        _case("a tenth of the runs fails, for hours", "3h", {FAILED: "0+1x400", ENDED: "0+9x400"}, WF, interval="1m"),
        _case("two of a hundred", "3h", {FAILED: "0+2x400", ENDED: "0+98x400"}, interval="1m"),
    ],
    "RunspanRunStuck": [
        _case("a run that nobody saw go on", "5m", {_stuck("wf"): "_x8 900+15x60"}, f"{SERVER}, {_STUCK_WF}"),
        _case(
            "one of another workflow, later",
            "10m",
            {_stuck("wf"): "_x8 900+15x60", _stuck("wf2"): "_x30 900+15x60"},
            f"{SERVER}, {_STUCK_WF}",
            f'{SERVER}, runspan_workflow_id="wf2"',
        ),
        _case("it has ended", "5m", {_stuck("wf"): "_x2 900+15x6 stale _x60"}),
        _case("none", "5m", {}),
        _case("for half a minute", "5m", {_stuck("wf"): "_x8 900x2 stale _x60"}),
    ],
    "RunspanNoRuns": [
        _case("runs yesterday, and none today", "32h", {ENDED: "0+1x144 144x300"}, 'job="team/runspan"', interval=LONG),
        _case(
            "runs yesterday, a restart of the Collector, and none today",
            "32h",
            {_of("a", ENDED): "0+1x144 _x300", _of("b", ENDED.replace('"wf"', '"other"')): "_x145 0x300"},
            'job="team/runspan"',
            interval=LONG,
        ),
        _case(
            "none on a Monday, after a weekend without runs",
            "188h",
            {ENDED: "0+1x720 720x1200"},
            'job="team/runspan"',
            interval=LONG,
        ),
        _case("a service that has ended two weeks ago", "324h", {ENDED: "0+1x300 300x1700"}, interval=LONG),
        _case("each night without runs", "32h", {ENDED: "0x48 0+1x96 96x48 96+1x96"}, interval=LONG),
        _case("each weekend without runs", "300h", {ENDED: "0+1x720 720x288 720+1x720 1440x288"}, interval=LONG),
        _case("one a day, half an hour later", "34h20m", {ENDED: "_x60 1x146 2x300"}, interval=LONG),
        _case("only a new workflow has runs", "32h", {ENDED: "0+1x144 144x300", FAILED: "_x180 1x200"}, interval=LONG),
        _case("a Prometheus that has only just begun", "7h30m", {ENDED: "5x600"}, interval=LONG),
    ],
    "RunspanRunSlow": [
        _case("runs that take an hour", "20m", _latency("run", WF, slow=True), WF),
        _case("runs that take a minute", "20m", _latency("run", WF, slow=False)),
        _case("three slow runs only", "20m", _latency("run", WF, slow=True, every="0x40 1x10 2x10 3x200")),
    ],
    "RunspanStepSlow": [
        _case("steps that take an hour", "20m", _latency("step", STEP, slow=True), f'{WF}, runspan_step_id="charge"'),
        _case("steps that take a minute", "20m", _latency("step", STEP, slow=False)),
        _case(
            "steps that wait by their nature", "20m", _latency("step", STEP.replace("stripe", "approval"), slow=True)
        ),
    ],
    "RunspanRetriesHigh": [
        _case(
            "one more attempt each time",
            "20m",
            {
                f"runspan_step_retries_total{{{STEP}}}": "0+1x200",
                f'runspan_steps_total{{{STEP}, runspan_step_status="completed"}}': "0+1x200",
            },
            f'{WF}, runspan_step_id="charge"',
        ),
        _case(
            "one of ten",
            "20m",
            {
                f"runspan_step_retries_total{{{STEP}}}": "0+1x200",
                f'runspan_steps_total{{{STEP}, runspan_step_status="completed"}}': "0+10x200",
            },
        ),
        _case(
            "twice in all",
            "20m",
            {
                f"runspan_step_retries_total{{{STEP}}}": "0x40 2x200",
                f'runspan_steps_total{{{STEP}, runspan_step_status="completed"}}': "0x40 1x200",
            },
        ),
    ],
    "RunspanApprovalWaiting": [
        _case("revisions over four hours after the start", "150m", _waiting("0+1x20 20x200"), WF, interval="1m"),
        _case("an hour after the last revision of one that is so old", "190m", _waited(130), WF, interval="1m"),
        _case("three hours after it", "310m", _waited(130), interval="1m"),
        _case("younger ones", "150m", _waiting("0+1x200"), interval="1m"),
        _case(
            "the store has one that is five minutes over the time, and nobody observes it",
            "245m",
            _suspended("0+60x300"),
            f"{SERVER}, {_STUCK_WF}",
            interval="1m",
        ),
        _case("the store has none so old", "239m", _suspended("0+60x300"), interval="1m"),
        _case("it went on, soon after a revision", "290m", _suspended("0+60x280 stale") | _waited(130), interval="1m"),
    ],
    "RunspanTokenBudget": [
        _case("input and output together", "2h", _tokens("0+250000x200"), 'job="team/runspan"', interval="1m"),
        _case(
            "all of it in the first run",
            "10m",
            _tokens(f"{_LATE}30000000x60") | {"otelcol_process_uptime": "0+15x60"},
            'job="team/runspan"',
        ),
        _case("less", "2h", _tokens("0+100000x200"), interval="1m"),
    ],
    "RunspanCostBudget": [
        _case("a dollar a minute", "2h", {_COST: "0+1x200"}, 'job="team/runspan"', interval="1m"),
        _case("ten cents a minute", "2h", {_COST: "0+0.1x200"}, interval="1m"),
    ],
    "RunspanExportNotDelivering": [
        _case(
            "runs wait and none is accepted",
            "10m",
            {f"runspan_export_queue{{{SYNC}}}": "40x60", f"runspan_export_runs_total{{{SYNC}}}": "0+5x8 40x60"},
            SYNC,
        ),
        _case(
            "a receiver that never answered",
            "10m",
            {f"runspan_export_queue{{{SYNC}}}": "40x60", f"runspan_export_runs_total{{{SYNC}}}": "0x60"},
            SYNC,
        ),
        _case(
            "it delivers",
            "10m",
            {f"runspan_export_queue{{{SYNC}}}": "40x60", f"runspan_export_runs_total{{{SYNC}}}": "0+5x60"},
        ),
        _case(
            "there is nothing to do",
            "10m",
            {f"runspan_export_queue{{{SYNC}}}": "0x60", f"runspan_export_runs_total{{{SYNC}}}": "9x60"},
        ),
    ],
    "RunspanExportRejected": [
        _case("some runs were not taken", "5m", {f"runspan_export_rejected_total{{{SYNC}}}": "0x12 3x60"}, SYNC),
        *_counted_by_processes("runspan_export_rejected_total"),
    ],
    "RunspanDocumentsRefused": [
        _case("a document without an id", "5m", {f"runspan_export_refused_total{{{SYNC}}}": "0x12 1x60"}, SYNC),
        *_counted_by_processes("runspan_export_refused_total"),
        _case("long ago", "15m", {f"runspan_export_refused_total{{{SYNC}}}": "0x12 1x60"}),
    ],
    "RunspanSyncStalled": [
        _case(
            "the list was read 20 minutes ago", "22m", {f"runspan_sync_poll_age_seconds{{{SYNC}}}": "0+15x200"}, SYNC
        ),
        _case("it is read every minute", "22m", {f"runspan_sync_poll_age_seconds{{{SYNC}}}": "30x200"}),
    ],
    "RunspanSyncLagging": [
        _case("a backlog of two hours", "10m", {f"runspan_sync_lag_seconds{{{SYNC}}}": "7200x60"}, SYNC),
        _case("a backlog of a minute", "10m", {f"runspan_sync_lag_seconds{{{SYNC}}}": "60x60"}),
    ],
    "RunspanRetentionClose": [
        _case("an hour is left", "5m", {f"runspan_sync_retention_margin_seconds{{{SYNC}}}": "3600-15x60"}, SYNC),
        _case("it is too late", "5m", {f"runspan_sync_retention_margin_seconds{{{SYNC}}}": "-60-15x60"}, SYNC),
        _case("six days are left", "5m", {f"runspan_sync_retention_margin_seconds{{{SYNC}}}": "518400-15x60"}),
        _case("there is no backlog", "5m", {}),
    ],
    "RunspanExpiryRefused": [
        _case("runs are kept", "5m", {f"runspan_store_overdue{{{SERVER}}}": "0x4 950x60"}, SERVER),
        _case("all that is due is deleted", "5m", {f"runspan_store_overdue{{{SERVER}}}": "0x60"}),
    ],
    "RunspanStoreDamaged": [
        _case("a run was read", "5m", {f"runspan_store_damaged_reads_total{{{SERVER}}}": "0x12 2x60"}, SERVER),
        _case("long ago", "15m", {f"runspan_store_damaged_reads_total{{{SERVER}}}": "0x12 2x60"}),
        _case("nothing is damaged", "5m", {f"runspan_store_damaged_reads_total{{{SERVER}}}": "0x60"}),
    ],
    "RunspanServerDown": [
        _case(
            "it does not answer",
            "5m",
            {'up{job="runspan", instance="runspan:8321"}': "1x8 0x60"},
            'job="runspan", instance="runspan:8321"',
        ),
        _case("it answers", "5m", {'up{job="runspan", instance="runspan:8321"}': "1x60"}),
    ],
    "RunspanStateUnreachable": [
        _case("its database is away", "5m", {f"runspan_state_reachable{{{SERVER}}}": "1x8 0x60"}, SERVER),
        _case(
            "of one server of two",
            "5m",
            {
                f"runspan_state_reachable{{{SERVER}}}": "1x60",
                f"runspan_state_reachable{{{OTHER_SERVER}}}": "0x60",
            },
            OTHER_SERVER,
        ),
        _case("the database was restarted", "5m", {f"runspan_state_reachable{{{SERVER}}}": "1x17 0x2 1x60"}),
        _case("it answers", "5m", {f"runspan_state_reachable{{{SERVER}}}": "1x60"}),
        _case("the server has a store of its own", "5m", {f"runspan_store_runs{{{SERVER}}}": "1x60"}),
    ],
    "RunspanCollectorDown": [
        _case(
            "it does not answer",
            "5m",
            {'up{job="collector", instance="c:8888"}': "1x8 0x60"},
            COLLECTOR,
        ),
        _case("nobody looks for it", "5m", {}, 'job="collector"'),
        _case("it answers", "5m", {'up{job="collector", instance="c:8888"}': "1x60"}),
    ],
    "RunspanCollectorRefusing": [
        _case(
            "spans are refused",
            "8m",
            {f"otelcol_receiver_refused_spans{{{OTLP}}}": "0x28 50x60"},
            OTLP,
        ),
        _case(
            "none",
            "8m",
            {f"otelcol_receiver_refused_spans{{{OTLP}}}": "0x60"},
        ),
    ],
    "RunspanExporterNotDelivering": [
        _case(
            "a queue, and nothing was ever sent",
            "5m",
            {f'otelcol_exporter_queue_size{{{TEMPO}, data_type="traces"}}': "900x60"},
            TEMPO,
        ),
        _case(
            "a queue, and nothing is sent any more",
            "10m",
            {
                f'otelcol_exporter_queue_size{{{TEMPO}, data_type="traces"}}': "900x60",
                f"otelcol_exporter_sent_spans{{{TEMPO}}}": "0+5x8 40x60",
            },
            TEMPO,
        ),
        _case(
            "it sends",
            "5m",
            {
                f'otelcol_exporter_queue_size{{{TEMPO}, data_type="traces"}}': "900x60",
                f"otelcol_exporter_sent_spans{{{TEMPO}}}": "0+5x60",
            },
        ),
        _case("nothing waits", "5m", {f'otelcol_exporter_queue_size{{{TEMPO}, data_type="traces"}}': "0x60"}),
    ],
    "RunspanSpansDropped": [
        _case(
            "the first spans that are given up",
            "8m",
            {f'otelcol_exporter_send_failed_spans{{{TEMPO}, error_type="InvalidArgument"}}': f"{_LATE}7x60"},
            TEMPO,
        ),
        _case(
            "as many after a restart of the Collector as before",
            "8m15s",
            {
                f'otelcol_exporter_send_failed_spans{{{TEMPO}, service_instance_id="a"}}': "7x30",
                f'otelcol_exporter_send_failed_spans{{{TEMPO}, service_instance_id="b"}}': "_x32 7x60",
                "otelcol_process_uptime": "_x31 5+15x60",
            },
            TEMPO,
        ),
        _case(
            "long ago",
            "14m",
            {f'otelcol_exporter_send_failed_spans{{{TEMPO}, error_type="InvalidArgument"}}': f"{_LATE}7x60"},
        ),
    ],
    "RunspanQueueFull": [
        _case(
            "spans are turned away", "8m", {f"otelcol_exporter_enqueue_failed_spans{{{TEMPO}}}": f"{_LATE}7x60"}, TEMPO
        ),
        _case("none", "8m", {f"otelcol_exporter_enqueue_failed_spans{{{TEMPO}}}": "0x60"}),
    ],
    "RunspanQueueNearlyFull": [
        _case(
            "nine tenths",
            "5m",
            {
                f'otelcol_exporter_queue_size{{{TEMPO}, data_type="traces"}}': "0x8 900x60",
                f'otelcol_exporter_queue_capacity{{{TEMPO}, data_type="traces"}}': "1000x60",
            },
            TEMPO,
        ),
        _case(
            "a tenth",
            "5m",
            {
                f'otelcol_exporter_queue_size{{{TEMPO}, data_type="traces"}}': "100x60",
                f'otelcol_exporter_queue_capacity{{{TEMPO}, data_type="traces"}}': "1000x60",
            },
        ),
    ],
    "RunspanSpanMetricsOverflow": [
        _case(
            "the limit was reached",
            "5m",
            {'traces_span_metrics_calls_total{job="team/runspan", otel_metric_overflow="true"}': "_x8 5x60"},
            'job="team/runspan"',
        ),
        _case("it was not", "5m", {f'traces_span_metrics_calls_total{{{WF}, service_name="runspan"}}': "5x60"}),
    ],
    "RunspanSumsOverflow": [
        _case(
            "95 of 100",
            "5m",
            {
                'otelcol_deltatocumulative_streams_tracked{job="collector", instance="c:8888"}': "95x60",
                'otelcol_deltatocumulative_streams_limit{job="collector", instance="c:8888"}': "100x60",
            },
            COLLECTOR,
        ),
        _case(
            "10 of 100",
            "5m",
            {
                'otelcol_deltatocumulative_streams_tracked{job="collector", instance="c:8888"}': "10x60",
                'otelcol_deltatocumulative_streams_limit{job="collector", instance="c:8888"}': "100x60",
            },
        ),
    ],
    "RunspanRulesFailing": [
        _case(
            "a rule fails each time",
            "8m",
            {f'prometheus_rule_evaluation_failures_total{{{RULES}, rule_group="g"}}': "0+1x60"},
            RULES,
        ),
        _case(
            "none",
            "8m",
            {f'prometheus_rule_evaluation_failures_total{{{RULES}, rule_group="g"}}': "0x60"},
        ),
    ],
    "RunspanNotificationsFailing": [
        _case(
            "a webhook does not answer",
            "8m",
            {f"alertmanager_notifications_failed_total{{{NOTIFIED}}}": "0+1x60"},
            NOTIFIED,
        ),
        _case(
            "it does",
            "8m",
            {f"alertmanager_notifications_failed_total{{{NOTIFIED}}}": "0x60"},
        ),
    ],
    "RunspanWatchdog": [_case("always", "1m", {}, "")],
}
