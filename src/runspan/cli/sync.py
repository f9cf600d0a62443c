"""``runspan sync``: runs from the platform's REST API to any OTLP receiver, once or as they happen."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any, Final

import click

from runspan.cli.export import GC_THRESHOLD
from runspan.cli.export_hints import hint_on
from runspan.cli.metrics import metrics_option
from runspan.cli.options import (
    Length,
    Retention,
    Seconds,
    Utf8,
    api_key_option,
    json_option,
    option,
    receiver_options,
    replay_option,
    service_name_option,
    tenant_option,
)
from runspan.cli.process import INCOMPLETE, INTERRUPTED
from runspan.cli.syncing import KEY_VARIABLE, Options, synced
from runspan.document import RUN_STATUSES
from runspan.errors import SettingError
from runspan.sync import SyncReport

RATE: Final = 900
"""Requests a minute: nine tenths of the platform's limit of 1000 reads a minute and key, which others may use too."""


@click.command()
@click.argument("url", metavar="URL", envvar="RUNSPAN_SYNC_URL")
@receiver_options
@option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default=Path("runspan-sync.sqlite3"),
    help="Where the sync remembers each run. One file for each platform, receiver, tenant and filter.",
)
@option("--follow", is_flag=True, help="Go on: new runs as they come, unfinished ones until they end.")
@option(
    "--since",
    type=Length(),
    metavar="TIME",
    show_default="all that the platform has",
    help="Begin with runs that started in the last 24h, 7d, or any number of m, h or d. A later sync goes on where the "
    "last one was, however long ago.",
)
@option(
    "--workflow",
    "workflows",
    type=Utf8(),
    multiple=True,
    metavar="ID",
    help="Only runs of this workflow. May be given several times.",
)
@option(
    "--status",
    "statuses",
    type=click.Choice(RUN_STATUSES),
    multiple=True,
    metavar="STATUS",
    help="Only runs that are listed in this status; what was listed once is followed to its end. May be given several "
    f"times: {', '.join(RUN_STATUSES)}.",
)
@option(
    "--retention",
    type=Retention(),
    env="RUNSPAN_PLATFORM_RETENTION",
    metavar="DAYS",
    show_default="not watched",
    help="How long the platform keeps runs: days, or the plans' free (7), pro (30), enterprise (90). Warns when runs "
    "will be deleted before their turn comes.",
)
@option(
    "--requests-per-minute",
    type=click.IntRange(0),
    metavar="COUNT",
    default=RATE,
    help="Never ask the platform more often. It allows a key 1000 reads a minute; 0: no limit.",
)
@option("--concurrency", type=click.IntRange(1, 64), metavar="COUNT", default=8, help="Requests to it in flight.")
@option(
    "--poll",
    type=Seconds(),
    metavar="TIME",
    default="15s",
    help="With --follow: how often to look for new runs, and at unfinished ones.",
)
@option(
    "--rescan",
    type=Seconds(),
    metavar="TIME",
    show_default="1h with --follow, else every sync",
    help="How often to read the list all the way down, for runs that changed and runs that came late.",
)
@option(
    "--recheck",
    type=Length(),
    metavar="TIME",
    show_default="trust the list",
    help="With each rescan fetch the finished runs that started in this last while again, and compare them whole.",
)
@option(
    "--resend",
    type=Length(),
    metavar="TIME",
    show_default="what the receiver acknowledged is not sent again",
    help="First send runs again, whole, that started in this last while and that the receiver has acknowledged: for "
    "one that lost some. Not with --follow.",
)
@option(
    "--heartbeat",
    type=Seconds(),
    metavar="TIME",
    default="5m",
    help="Send an unfinished run again after this long without a change, so that it shows as alive; 0: never.",
)
@option(
    "--give-up-after",
    type=Seconds(),
    metavar="TIME",
    default="5m",
    help="How long a platform or a receiver that does not answer is tried. With --follow: for ever.",
)
@option(
    "--dead-letter",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    show_default="CHECKPOINT.dead-letters.ndjson",
    help="Append every document that was refused to this file, which export reads back in.",
)
@option("--retry-refused", is_flag=True, help="Try runs again that an earlier sync found refused.")
@option(
    "--source-key-file",
    type=click.Path(path_type=Path),
    env="RUNSPAN_SYNC_API_KEY_FILE",
    metavar="FILE",
    show_default=f"the key in {KEY_VARIABLE}, if any",
    help="File that holds the platform's API key. It is read again when the platform refuses the key: replace it to "
    "rotate.",
)
@option("--workers", type=click.IntRange(1, 64), metavar="COUNT", default=4, help="Requests to the receiver in flight.")
@service_name_option
@replay_option
@tenant_option
@api_key_option
@metrics_option
@option("--quiet", is_flag=True, help="No progress, and a report only when something went wrong: for cron.")
@json_option
@click.pass_context
def sync(ctx: click.Context, /, **given: Any) -> None:
    """Pull runs from the platform, and send them as traces.

    URL, or RUNSPAN_SYNC_URL, is the platform or another runspan server: what stands before /api/v1. Its list is read,
    each run fetched, the oldest first, sent to the receiver, and remembered in the checkpoint once the receiver has it.
    Stop it whenever you like, or let it crash: the next sync goes on from there, and nothing is lost or doubled.

    A run that has not ended is sent as a snapshot, and again until it ends, but its finished steps once; a finished
    run that changed is sent as a revision. A document that cannot be carried exactly, or that the receiver refuses, is
    reported, kept in the file of dead letters, and not tried again before it changes. What cannot be fetched because
    somebody else answers for the platform, or nobody does, is tried until it comes.

    \b
    Examples:
      runspan sync https://workflows.example.com --endpoint http://127.0.0.1:8321
      runspan sync https://workflows.example.com --follow --retention pro
      runspan sync https://workflows.example.com --since 24h --status failed --status timed_out
      runspan sync https://workflows.example.com --resend 24h --replay
      runspan sync http://127.0.0.1:8321 --endpoint tempo:4317 --protocol grpc --requests-per-minute 0

    Secrets never stand on a command line: the platform's API key comes from RUNSPAN_SYNC_API_KEY or a file, the
    receiver's from RUNSPAN_API_KEY or a file, other headers from OTEL_EXPORTER_OTLP_HEADERS.

    SIGTERM and Ctrl-C end it within seconds; a second one at once. The report goes to standard error. The exit code is
    0 if the receiver has everything, 1 if runs are refused or could not be fetched, 130 if it was stopped before its
    end; --follow ends by being stopped, so with 0.
    """
    options = Options(**given)
    if options.resend and options.follow:
        hint = "stop the one that follows, run this once, and start it again"
        raise SettingError(where="--resend", expected="a sync that ends", got="--follow", hint=hint)
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    report, error = synced(options)
    _print(report, options)
    if error is not None:
        raise error
    ctx.exit(_exit_code(report, options))


def _print(report: SyncReport, options: Options) -> None:
    if options.as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    if options.quiet and report.complete and not report.threatened:
        return
    for line in report.summary_lines():
        click.echo(line, err=True)
    for hint in dict.fromkeys(filter(None, (hint_on(reason) for _, reason in report.rejected_now))):
        click.echo(f"  hint: {hint}", err=True)


def _exit_code(report: SyncReport, options: Options) -> int:
    if report.stopped:
        return INTERRUPTED
    wrong = report.counts.refused + report.counts.rejected + report.refused_before + report.counts.odd
    if not options.follow:
        return 0 if report.complete else INCOMPLETE
    return INCOMPLETE if wrong or report.lost else 0
