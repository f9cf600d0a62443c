"""Health of the pipeline: exporter, Collector, backends and runspan's own server."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import (
    BYTES,
    COUNT,
    PER_SECOND,
    SECONDS,
    SHARE,
    Panel,
    filled,
    graph,
    judged,
    linked,
    new_dashboard,
    number,
    organized,
    prom,
    prom_now,
    prometheus_variable,
    ranked,
    rows,
    runspan_variable,
)
from dashboards.queries import RANGE, RATE, every, grew

EXPORTER = "{{exporter}}"
PROCESS = "{{job}} {{instance}}"


def dashboard() -> Dashboard:
    """What to look at when runs are missing."""
    made = new_dashboard(
        "runspan-pipeline",
        "runspan / Pipeline health",
        "The way of the runs: exporters and sync, the Collector with its queues, the backends, runspan's own server. "
        "Look here when runs are late or missing.",
    )
    made.variables([prometheus_variable(), runspan_variable()])
    return filled(
        made,
        [("Now", now()), ("Collector", collector()), ("Exporters and sync", exporters()), ("runspan server", server())],
    )


def now() -> list[Panel]:
    lost = grew("otelcol_exporter_send_failed_spans", "", RANGE)
    turned_away = grew("otelcol_exporter_enqueue_failed_spans", "", RANGE)
    return [
        judged(
            number(
                "Targets down",
                "Things that Prometheus should scrape and cannot.",
                COUNT,
                "count(up == 0) or vector(0)",
                empty="none",
            ),
            (None, "green"),
            (1, "red"),
        ),
        judged(
            number(
                "Fullest queue",
                "The Collector's fullest queue on disk. When it is full, every sender is told to come back.",
                SHARE,
                "max(otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)",
                decimals=1,
                empty="no Collector",
            ),
            (None, "green"),
            (0.5, "yellow"),
            (0.8, "red"),
        ),
        judged(
            number(
                "Spans lost",
                "Spans that a backend refused for good, in the chosen time. Their senders had heard 200.",
                COUNT,
                f"sum({lost}) or vector(0)",
                empty="none",
            ),
            (None, "green"),
            (1, "red"),
        ),
        judged(
            number(
                "Spans turned away",
                "Spans that found a full queue, in the chosen time. Their senders were told to come back.",
                COUNT,
                f"sum({turned_away}) or vector(0)",
                empty="none",
            ),
            (None, "green"),
            (1, "yellow"),
        ),
        judged(
            number(
                "Series used",
                "Counters of the Collector, of the most that it keeps. Past it, what is new is not counted.",
                SHARE,
                "max(otelcol_deltatocumulative_streams_tracked / otelcol_deltatocumulative_streams_limit)",
                decimals=1,
                empty="no Collector",
            ),
            (None, "green"),
            (0.9, "red"),
        ),
        judged(
            number(
                "Firing alerts",
                "Without the watchdog, which always fires.",
                COUNT,
                'count(ALERTS{alertstate="firing", severity=~"critical|warning"}) or vector(0)',
                empty="none",
            ),
            (None, "green"),
            (1, "red"),
        ),
        linked(
            organized(
                rows(
                    "Alerts",
                    "Firing and pending alerts. The watchdog shows that alerts are evaluated at all.",
                    COUNT,
                    prom_now("ALERTS", as_table=True),
                    empty="No alert, not even the watchdog: Prometheus has no rules of runspan.",
                ).span(24),
                ["alertname", "alertstate", "severity"],
                ["Time", "Value", "__name__"],
            ),
            "Runbooks",
            "/runbooks",
        ),
    ]


def collector() -> list[Panel]:
    return [
        graph(
            "Spans taken",
            "Spans that the Collector acknowledged, by the way they came.",
            PER_SECOND,
            prom(f"sum by (transport) (rate(otelcol_receiver_accepted_spans[{RATE}]))", "{{transport}}"),
            empty="No span came in this time, or Prometheus does not scrape the Collector.",
        ),
        graph(
            "Spans refused",
            "Spans that senders were told to bring again, because a queue was full or memory short.",
            PER_SECOND,
            prom(every(1, "otelcol_receiver_refused_spans", "", "transport"), "{{transport}}"),
            empty="No span was refused, or Prometheus does not scrape the Collector.",
        ),
        graph(
            "Queues",
            "What waits on disk for a backend, of the queue's capacity. A line that climbs is a backend that is down.",
            SHARE,
            prom("max by (exporter) (otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)", EXPORTER),
            empty="Prometheus does not scrape the Collector.",
        ),
        graph(
            "Spans delivered",
            "Spans that a backend acknowledged.",
            PER_SECOND,
            prom(f"sum by (exporter) (rate(otelcol_exporter_sent_spans[{RATE}]))", EXPORTER),
            empty="No span was delivered in this time, or Prometheus does not scrape the Collector.",
        ),
        graph(
            "Spans refused for good",
            "Spans that a backend did not take and never will. Their senders had heard 200.",
            PER_SECOND,
            prom(every(1, "otelcol_exporter_send_failed_spans", "", "exporter"), EXPORTER),
            empty="No span was refused, or Prometheus does not scrape the Collector.",
        ),
        graph(
            "Spans turned away by a full queue",
            "Their senders were told to come back.",
            PER_SECOND,
            prom(every(1, "otelcol_exporter_enqueue_failed_spans", "", "exporter"), EXPORTER),
            empty="No span was turned away, or Prometheus does not scrape the Collector.",
        ),
        graph(
            "Collector memory",
            "Resident memory. The memory limiter refuses before it is full.",
            BYTES,
            prom("max by (instance) (otelcol_process_memory_rss)", "{{instance}}"),
            empty="Prometheus does not scrape the Collector.",
        ),
        graph(
            "Collector processor time",
            "Cores that the Collector uses.",
            COUNT,
            prom(f"max by (instance) (rate(otelcol_process_cpu_seconds[{RATE}]))", "{{instance}}"),
            empty="Prometheus does not scrape the Collector.",
        ),
    ]


def exporters() -> list[Panel]:
    return [
        graph(
            "Runs exported",
            "Runs that exporters had acknowledged.",
            PER_SECOND,
            prom(f"sum by (job, instance) (rate(runspan_export_runs_total[{RATE}]))", PROCESS),
            empty="No exporter reports its metrics: see docs/health.md.",
        ),
        graph(
            "Runs not taken, requests sent again",
            "Rejected runs and documents that cannot be carried exactly stay with the exporter, which names each; "
            "requests that are sent again are late, not lost.",
            PER_SECOND,
            prom(f"sum(rate(runspan_export_rejected_total[{RATE}]))", "rejected runs"),
            prom(f"sum(rate(runspan_export_refused_total[{RATE}]))", "refused documents"),
            prom(f"sum(rate(runspan_export_retries_total[{RATE}]))", "requests sent again"),
            empty="No exporter reports its metrics: see docs/health.md.",
        ),
        graph(
            "Sync backlog",
            "Runs that the platform listed and the receiver does not have yet.",
            COUNT,
            prom("sum by (job, instance) (runspan_sync_backlog)", PROCESS),
            empty="No sync reports its metrics: see docs/health.md.",
        ),
        graph(
            "Sync lag and retention margin",
            "Age of the oldest run of the backlog, time since the platform's list was read, and how long until the "
            "platform deletes the oldest run of the backlog.",
            SECONDS,
            prom("max by (job, instance) (runspan_sync_lag_seconds)", f"{PROCESS} lag"),
            prom("max by (job, instance) (runspan_sync_poll_age_seconds)", f"{PROCESS} last poll"),
            prom("min by (job, instance) (runspan_sync_retention_margin_seconds)", f"{PROCESS} margin"),
            empty="No sync reports its metrics: see docs/health.md.",
        ),
    ]


def server() -> list[Panel]:
    failed = grew("runspan_http_requests_total", 'status=~"[45].."', RANGE)
    return [
        graph(
            "Requests",
            "Requests that runspan answered, by route.",
            "reqps",
            prom(f"sum by (route) (rate(runspan_http_requests_total[{RATE}]))", "{{route}}"),
            empty="No request in this time, or Prometheus does not scrape runspan.",
        ),
        graph(
            "Requests by status",
            "5xx are runspan's own or its backend's failures.",
            "reqps",
            prom(f"sum by (status) (rate(runspan_http_requests_total[{RATE}]))", "{{status}}"),
            empty="No request in this time, or Prometheus does not scrape runspan.",
        ),
        graph(
            "Time to answer p95",
            "To the first byte, by route.",
            SECONDS,
            prom(
                "histogram_quantile(0.95, sum by (le, route) "
                f"(rate(runspan_http_request_duration_seconds_bucket[{RATE}])))",
                "{{route}}",
            ),
            empty="No request in this time, or Prometheus does not scrape runspan.",
        ),
        graph(
            "Spans received",
            "Spans in requests to /v1/traces, and those of them that were not taken.",
            PER_SECOND,
            prom(f"sum(rate(runspan_spans_received_total[{RATE}]))", "received"),
            prom(f"sum(rate(runspan_spans_rejected_total[{RATE}]))", "rejected"),
            empty="Prometheus does not scrape runspan.",
        ),
        graph(
            "Store",
            "Bytes of the embedded store, and of its index, on disk.",
            BYTES,
            prom("sum(runspan_store_bytes)", "runs"),
            prom("sum(runspan_index_bytes)", "index"),
            empty="Prometheus does not scrape a runspan with a store of its own.",
        ),
        graph(
            "How far the index is behind",
            "Age of the oldest run that the index of the store lacks. Where it rises, the server cannot keep up: "
            "searches, filters and statistics lack runs, and say so.",
            SECONDS,
            prom("max(runspan_index_lag_seconds)", "oldest run"),
            empty="Prometheus does not scrape a runspan with an index.",
        ),
        graph(
            "Runs stored",
            "Runs in the embedded store.",
            COUNT,
            prom("sum(runspan_store_runs)", "runs"),
            empty="Prometheus does not scrape a runspan with a store of its own.",
        ),
        graph(
            "Spans that wait for the rest of their run",
            "Fragments of runs of which spans are missing. A line that stays up is a sender that lost some.",
            COUNT,
            prom("sum(runspan_store_fragments)", "fragments"),
            empty="Prometheus does not scrape a runspan with a store of its own.",
        ),
        ranked(
            "Requests that failed",
            "Answers with an error in the chosen time, by route.",
            COUNT,
            f"topk(10, sum by (route, status) ({failed}) > 0)",
            {"route": "Route", "status": "Status"},
            "Answers",
            empty="No request failed in this time.",
        ),
    ]
