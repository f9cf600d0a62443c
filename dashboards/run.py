"""The drill-down into one run: its trace, its graph, its steps, and the way to its document."""

from __future__ import annotations

from grafana_foundation_sdk.builders import nodegraph
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.builders.dashboard import Panel as AnyPanel
from grafana_foundation_sdk.builders.tempo import Dataquery as TempoQuery
from grafana_foundation_sdk.cog.runtime import UnknownDataquery
from grafana_foundation_sdk.models import units

from dashboards.parts import (
    JAEGER,
    TEMPO,
    Panel,
    datasource_variable,
    filled,
    new_dashboard,
    runspan_variable,
    span_rows,
    tempo_variable,
    text_variable,
    titled,
)
from dashboards.queries import ATTEMPT_SPAN, RUN_SHOWN, STEP_SPAN, traceql

THIS = 'trace:id = "${trace_id}"'
REVISIONS = 'instrumentation:name =~ "runspan.(run|revision)"'


def dashboard() -> Dashboard:
    """One run. Links from the other dashboards bring the trace id; a part of the run id finds it as well."""
    made = new_dashboard(
        "runspan-run",
        "runspan / Run",
        "One run: its trace, its steps, and links to its JSON document and its page in runspan. Choose it by its trace "
        "id, or type a part of its run id and follow the link of the run that is found.",
        since="now-30d",
    )
    made.variables(
        [
            tempo_variable(),
            datasource_variable(
                "jaeger", "jaeger", "Jaeger", "The Jaeger that keeps the runs' traces, if there is one."
            ),
            text_variable("run_id", "Run id", "", "A run id or a part of it, to find the run."),
            text_variable("trace_id", "Trace id", "", "The trace of the run that is shown, 32 hex digits."),
            runspan_variable(),
        ]
    )
    return filled(made, [("Find", [find()]), ("Run", run()), ("Steps", steps()), ("Jaeger", [jaeger_trace()])])


def find() -> Panel:
    return span_rows(
        "Runs that match",
        "The newest runs and revisions whose id has the text of Run id in it. Follow the link at its id.",
        traceql(f"{REVISIONS} && span.runspan.run.id =~ `.*${{run_id:regex}}.*`", *RUN_SHOWN),
        limit=20,
        hidden=("instrumentation:name",),
        empty="No run in this time has that text in its id.",
    ).height(6)


def run() -> list[Panel]:
    return [
        span_rows(
            "This run",
            "The run span, and the revisions from before its end: the newest one counts while there is no run span. "
            "The run id leads to the JSON document and the run's page.",
            traceql(
                f"{THIS} && {REVISIONS}",
                *RUN_SHOWN,
                "span.runspan.observed_at",
                "span.runspan.run.step_count",
                "span.runspan.run.input_tokens",
                "span.runspan.run.output_tokens",
                "span.runspan.run.cost_usd",
                "span.error.type",
                "statusMessage",
            ),
            hidden=("instrumentation:name", "trace:id"),
            empty="No run with this trace id: choose one above.",
        ).height(6),
        titled(
            AnyPanel().type("traces"),
            "Trace",
            "Every span of the run, those of other instrumentation below its steps too.",
            units.NoUnit,
            TEMPO,
            height=16,
            span=24,
            empty="No trace with this id.",
        ).with_target(trace()),
        titled(
            nodegraph.Panel(),
            "Graph",
            "Spans as nodes with their share of the time. Needs the node graph to be on in the Tempo data source.",
            units.NoUnit,
            TEMPO,
            height=14,
            span=24,
            empty="No trace with this id.",
        ).with_target(trace()),
    ]


def steps() -> list[Panel]:
    return [
        span_rows(
            "Steps",
            "Finished steps, at most 100. Open steps are in the document and, after some seconds, in the trace.",
            traceql(
                f"{THIS} && {STEP_SPAN}",
                "span.runspan.run.id",
                "span.runspan.step.id",
                "span.runspan.step.name",
                "span.runspan.step.type",
                "span.runspan.step.status",
                "span.runspan.step.attempt",
                "span.error.type",
                "statusMessage",
            ),
            hidden=("instrumentation:name", "name", "trace:id"),
            empty="No finished step.",
        ).height(12),
        span_rows(
            "Agent steps",
            "Model, tokens and cost of each agent step.",
            traceql(
                f'{THIS} && span.gen_ai.operation.name = "invoke_agent"',
                "span.runspan.step.id",
                "span.runspan.step.status",
                "span.gen_ai.provider.name",
                "span.gen_ai.request.model",
                "span.gen_ai.usage.input_tokens",
                "span.gen_ai.usage.output_tokens",
                "span.runspan.cost.usd",
            ),
            hidden=("gen_ai.operation.name", "trace:id"),
            empty="No agent step.",
        ),
        span_rows(
            "Attempts",
            "Attempts of retried steps, where the document lists them one by one.",
            traceql(
                f"{THIS} && {ATTEMPT_SPAN}",
                "span.runspan.attempt.number",
                "span.runspan.attempt.status",
                "span.error.type",
            ),
            hidden=("instrumentation:name", "trace:id"),
            empty="No step whose attempts are listed one by one.",
        ),
    ]


def trace() -> TempoQuery:
    """The whole trace: Grafana reads it by its id."""
    return TempoQuery().ref_id("A").query_type("traceql").query("${trace_id}").datasource(TEMPO)


def jaeger_trace() -> Panel:
    query: dict[str, object] = {
        "refId": "A",
        "datasource": {"type": "jaeger", "uid": "${jaeger}"},
        "query": "${trace_id}",
    }
    panel = titled(
        AnyPanel().type("traces"),
        "Trace in Jaeger",
        "The same trace as Jaeger has it.",
        units.NoUnit,
        JAEGER,
        height=16,
        span=24,
        empty="No trace with this id in this Jaeger.",
    )
    panel.with_target(JaegerQuery(query))
    return panel


class JaegerQuery:
    """A query of Jaeger's data source, for which the SDK has no builder."""

    def __init__(self, query: dict[str, object]) -> None:
        self._query = query

    def build(self) -> UnknownDataquery:
        return UnknownDataquery(self._query)
