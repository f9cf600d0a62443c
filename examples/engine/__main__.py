"""Run the example workflows with the Recorder: ``python examples/engine --endpoint http://127.0.0.1:8321``."""

from __future__ import annotations

import logging
import os

import click
from engine import Engine
from workflows import ORDER, PAYOUT, IntegrationError

from runspan import Recorder


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--endpoint",
    metavar="URL",
    help="OTLP receiver, such as http://127.0.0.1:8321; default: OTEL_EXPORTER_OTLP_ENDPOINT.",
)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="How often to run each workflow.")
@click.option("--slowness", type=click.FloatRange(0), default=1.0, show_default=True, help="Factor on simulated work.")
@click.option("--tenant", default="", help="Whose runs they are.")
@click.option("--run-id", metavar="ID", help="Id of the first run; random by default.")
@click.option("--acknowledged", is_flag=True, help="After each step wait for the receiver, then print the step.")
@click.option("--headers", multiple=True, metavar="NAME=VALUE", help="Headers of the request that starts the runs.")
def main(
    endpoint: str | None,
    runs: int,
    slowness: float,
    tenant: str,
    run_id: str | None,
    acknowledged: bool,
    headers: tuple[str, ...],
) -> None:
    """Execute an order-to-cash workflow and a payout that fails, and export them as traces.

    \b
    Examples:
      python examples/engine --endpoint http://127.0.0.1:8321
      python examples/engine --slowness 20 &   # then watch: runspan list --status running
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    request = dict(header.partition("=")[::2] for header in headers) or None
    with Recorder(endpoint=endpoint, environ=os.environ, service_name="example-engine", tenant=tenant) as recorder:
        on_delivered = (lambda run, step: click.echo(f"acknowledged {run} {step}")) if acknowledged else None
        engine = Engine(recorder, slowness=slowness, on_delivered=on_delivered)
        for number in range(runs):
            name = run_id if number == 0 else None
            engine.execute(
                ORDER,
                {"customer": "cus_7"},
                trigger="webhook",
                run_id=name,
                headers=request,
                on_start=lambda run: click.echo(f"run {run.id}"),
            )
            try:
                engine.execute(
                    PAYOUT, {"vendor": 4}, trigger="schedule", on_start=lambda run: click.echo(f"run {run.id}")
                )
            except IntegrationError as error:
                click.echo(f"failed, as it should: {error}")
        report = recorder.shutdown()
    click.echo(f"{report.runs_delivered} of {report.runs_ended} runs delivered, {report.spans_sent} spans")
    if not report.complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
