"""Agents and cost: tokens, dollars, models, and the runs that spend most."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import (
    COUNT,
    DOLLARS,
    PER_MINUTE,
    SECONDS,
    SHARE,
    Panel,
    compared,
    filled,
    graph,
    judged,
    new_dashboard,
    number,
    prom,
    prometheus_variable,
    ranked,
    run_variables,
    runspan_variable,
    span_rows,
    tempo_variable,
)
from dashboards.queries import (
    AGENTS,
    CHOSEN,
    COST,
    FAILED_AGENTS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    PLACE,
    RANGE,
    RATE,
    RATE_MS,
    RUN_SHOWN,
    RUN_SPAN,
    STEPS,
    every,
    grew,
    quantile,
    traceql,
)

HOUR = 3600
COST_OF_RANGE = f"sum({grew(COST, PLACE, RANGE)})"
AGENT_STEPS = f"sum({grew(STEPS, AGENTS, RANGE)})"
AGENT_SPANS = f'runspan_role="step", {AGENTS}'
MODEL = "{{gen_ai_request_model}}"


def dashboard() -> Dashboard:
    """Tokens and cost are counted once: on the agent's step, never again on its run."""
    made = new_dashboard(
        "runspan-agents",
        "runspan / Agents and cost",
        "Agent steps: tokens, cost, models, speed, failures. Cost is what the platform reported with each step.",
        since="now-24h",
    )
    made.variables([prometheus_variable(), tempo_variable(), *run_variables(), runspan_variable()])
    return filled(
        made,
        [("Now", totals()), ("Tokens and cost", spending()), ("Agents", agents()), ("Runs to look at", tables())],
    )


def totals() -> list[Panel]:
    return [
        number("Cost", "In US dollars, in the chosen time.", DOLLARS, COST_OF_RANGE, decimals=2, empty="no cost"),
        number(
            "Cost of an agent step",
            "Cost by the number of agent steps.",
            DOLLARS,
            f"{COST_OF_RANGE} / ({AGENT_STEPS} > 0)",
            decimals=4,
            empty="no agents",
        ),
        number("Agent steps", "Agent steps that ended in the chosen time.", COUNT, AGENT_STEPS, empty="no agents"),
        number(
            "Input tokens",
            "What models read in the chosen time.",
            COUNT,
            f"sum({grew(INPUT_TOKENS, PLACE, RANGE)})",
            empty="no tokens",
        ),
        number(
            "Output tokens",
            "What models wrote in the chosen time.",
            COUNT,
            f"sum({grew(OUTPUT_TOKENS, PLACE, RANGE)})",
            empty="no tokens",
        ),
        judged(
            number(
                "Failed agent steps",
                "Of all agent steps that ended.",
                SHARE,
                f"(sum({grew(STEPS, FAILED_AGENTS, RANGE)}) or vector(0)) / ({AGENT_STEPS} > 0)",
                decimals=1,
                empty="no agents",
            ),
            (None, "green"),
            (0.01, "yellow"),
            (0.05, "red"),
        ),
    ]


def spending() -> list[Panel]:
    return [
        graph(
            "Cost by workflow",
            "US dollars an hour, as agent steps reported it.",
            DOLLARS,
            prom(every(HOUR, COST, PLACE, "runspan_workflow_id"), "{{runspan_workflow_id}}"),
            stacked=True,
            empty="No agent step reported a cost in this time.",
        ),
        graph(
            "Cost by model",
            "US dollars an hour, as agent steps reported it.",
            DOLLARS,
            prom(every(HOUR, COST, PLACE, "gen_ai_request_model"), MODEL),
            stacked=True,
            empty="No agent step reported a cost in this time.",
        ),
        graph(
            "Tokens",
            "Tokens a minute, input and output.",
            COUNT,
            prom(every(60, INPUT_TOKENS, PLACE), "input"),
            prom(every(60, OUTPUT_TOKENS, PLACE), "output"),
            stacked=True,
            empty="No agent step reported tokens in this time.",
        ),
        graph(
            "Tokens by model",
            "Input and output tokens a minute.",
            COUNT,
            prom(
                tokens("gen_ai_request_model"),
                MODEL,
            ),
            stacked=True,
            empty="No agent step reported tokens in this time.",
        ),
        graph(
            "Tokens by workflow",
            "Input and output tokens a minute.",
            COUNT,
            prom(tokens("runspan_workflow_id"), "{{runspan_workflow_id}}"),
            stacked=True,
            empty="No agent step reported tokens in this time.",
        ),
        compared(
            "Spend by workflow and model",
            "Cost and tokens in the chosen time. A model without a price has tokens and no cost.",
            {"runspan_workflow_id": "Workflow", "gen_ai_request_model": "Model"},
            ("Cost", DOLLARS, spent(COST)),
            ("Input tokens", COUNT, spent(INPUT_TOKENS)),
            ("Output tokens", COUNT, spent(OUTPUT_TOKENS)),
            empty="No agent step reported tokens or a cost in this time.",
        ),
        ranked(
            "Workflows that cost most",
            "US dollars in the chosen time.",
            DOLLARS,
            f"topk(10, sum by (runspan_workflow_id) ({grew(COST, PLACE, RANGE)}))",
            {"runspan_workflow_id": "Workflow"},
            "Cost",
            empty="No agent step reported a cost in this time.",
        ),
        ranked(
            "Models that cost most",
            "US dollars in the chosen time.",
            DOLLARS,
            f"topk(10, sum by (gen_ai_request_model) ({grew(COST, PLACE, RANGE)}))",
            {"gen_ai_request_model": "Model"},
            "Cost",
            empty="No agent step reported a cost in this time.",
        ),
    ]


def tokens(by: str) -> str:
    """Input and output tokens a minute for each value of a label; a step may report only one of the two."""
    read, written = (
        f'label_replace(sum by ({by}) ({grew(metric, PLACE, RATE)}), "kind", "{metric}", "", "")'
        for metric in (INPUT_TOKENS, OUTPUT_TOKENS)
    )
    return f"60000 / {RATE_MS} * sum by ({by}) ({read} or {written})"


def spent(metric: str) -> str:
    """How much of it each workflow spent on each model in the chosen time."""
    return f"sum by (runspan_workflow_id, gen_ai_request_model) ({grew(metric, PLACE, RANGE)})"


def agents() -> list[Panel]:
    return [
        graph(
            "Agent step duration",
            "Quantiles over the chosen workflows. A point leads to the trace of one step.",
            SECONDS,
            prom(quantile(0.5, AGENT_SPANS), "p50"),
            prom(quantile(0.95, AGENT_SPANS), "p95", exemplars=True),
            empty="No agent step ended in this time.",
        ),
        graph(
            "Agent steps by step",
            "Agent steps that ended, a minute.",
            PER_MINUTE,
            prom(
                every(60, STEPS, AGENTS, "runspan_workflow_id, runspan_step_id"),
                "{{runspan_workflow_id}} {{runspan_step_id}}",
            ),
            empty="No agent step ended in this time.",
        ),
    ]


def tables() -> list[Panel]:
    cost = ("span.runspan.run.input_tokens", "span.runspan.run.output_tokens")
    return [
        span_rows(
            "Runs that cost",
            "The newest runs with agent steps. Sort by cost to see the dearest of these.",
            traceql(f"{RUN_SPAN} && span.runspan.run.cost_usd > 0.0 && {CHOSEN}", *RUN_SHOWN, *cost),
            limit=200,
            hidden=("kind", "instrumentation:name", "name"),
            empty="No run with a cost ended in this time, or Tempo does not have it.",
        ),
        span_rows(
            "Agent steps to look at",
            "The newest agent steps that failed or used more than 10,000 tokens at once.",
            traceql(
                f'span.gen_ai.operation.name = "invoke_agent" && {CHOSEN} && '
                "(status = error || span.gen_ai.usage.input_tokens > 10000)",
                "span.runspan.run.id",
                "span.runspan.workflow.id",
                "span.runspan.step.id",
                "span.runspan.step.status",
                "span.gen_ai.request.model",
                "span.gen_ai.usage.input_tokens",
                "span.gen_ai.usage.output_tokens",
                "span.runspan.cost.usd",
                "span.error.type",
            ),
            hidden=("gen_ai.operation.name", "status"),
            empty="No agent step failed or used that many tokens.",
        ),
    ]
