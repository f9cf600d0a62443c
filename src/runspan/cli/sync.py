"""``runspan sync``: runs from the platform's REST API to any OTLP receiver, once or as they happen.

A sync put together from the command's options, and ended in order by a signal.
"""

from __future__ import annotations

import gc
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from runspan.cli.errors import INCOMPLETE, INTERRUPTED, hint_on
from runspan.cli.export import GC_THRESHOLD
from runspan.cli.options import (
    Duration,
    Retention,
    Seconds,
    Utf8Text,
    api_key_option,
    export_metrics,
    json_option,
    metrics_option,
    option,
    receiver_options,
    replay_option,
    service_name_option,
    tenant_option,
)
from runspan.cli.progress import display
from runspan.cli.resources import api_key, otlp_environment, resource_of
from runspan.delivery import DeadLetters, OnSettled, OtlpExporter, RetryPolicy, connect, exporter_config
from runspan.errors import RunspanError, SettingError
from runspan.http.rate_limiter import RateLimiter
from runspan.model.document import RUN_STATUSES
from runspan.model.timestamps import SECOND
from runspan.platform_api import PlatformClient, parse_api_url
from runspan.sync import (
    Binding,
    Checkpoint,
    ListFilter,
    RefreshPolicy,
    SyncConfig,
    SyncEngine,
    SyncReport,
    sync_samples,
)
from runspan.telemetry import CumulativeSource, MetricsRegistry, delivery_samples

KEY_VARIABLE: Final = "RUNSPAN_SYNC_API_KEY"
DAY: Final = 86_400 * SECOND
SHORTEST_POLL: Final = SECOND // 10


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """The values of the command's options."""

    url: str
    endpoint: str | None
    protocol: str | None
    checkpoint: Path
    follow: bool
    since: int | None
    workflows: tuple[str, ...]
    statuses: tuple[str, ...]
    retention: float | None
    requests_per_minute: int
    concurrency: int
    poll: float
    rescan: float | None
    recheck: int | None
    resend: int | None
    heartbeat: float
    give_up_after: float
    dead_letter: Path | None
    retry_refused: bool
    source_key_file: Path | None
    workers: int
    service_name: str
    replay: bool
    tenant: str
    api_key_file: Path | None
    metrics_listen: tuple[str, int] | None
    quiet: bool
    as_json: bool

    @property
    def retention_ns(self) -> int | None:
        return None if self.retention is None else int(self.retention * DAY)

    @property
    def letters(self) -> Path:
        """The file of dead letters."""
        return self.dead_letter or self.checkpoint.with_name(self.checkpoint.name + ".dead-letters.ndjson")

    def settings(self) -> SyncConfig:
        """What the sync does."""
        rescan = self.rescan if self.rescan is not None else 3600.0 if self.follow else 0.0
        filters = product(self.workflows or (None,), self.statuses or (None,))
        poll = max(_nanoseconds(self.poll), SHORTEST_POLL)
        return SyncConfig(
            filters=tuple(ListFilter(workflow, status) for workflow, status in dict.fromkeys(filters)),
            since=self.since,
            follow=self.follow,
            poll=poll,
            rescan=_nanoseconds(rescan),
            recheck=self.recheck or 0,
            resend=self.resend or 0,
            rhythm=RefreshPolicy(refresh=poll, heartbeat=_nanoseconds(self.heartbeat)),
            retention=self.retention_ns,
            concurrency=self.concurrency,
            give_up=self.give_up_after,
        )


def run_sync(options: SyncOptions) -> tuple[SyncReport, RunspanError | None]:
    """What came of it, and what made going on useless."""
    delivery = exporter_config(
        otlp_environment(options.api_key_file), endpoint=options.endpoint, protocol=options.protocol
    )
    if options.replay:
        delivery = delivery.as_replay()
    resource = resource_of(options.service_name)
    workflows, statuses = tuple(set(options.workflows)), tuple(set(options.statuses))
    base = parse_api_url("URL", options.url, key_variable=KEY_VARIABLE)
    binding = Binding(base, delivery.display_url, options.tenant, workflows, statuses)
    halted = threading.Event()
    error: RunspanError | None = None
    with ExitStack() as opened:
        checkpoint = opened.enter_context(closing(Checkpoint(options.checkpoint, binding, delivery.identity)))
        platform = _platform(base, options, halted)
        letters = opened.enter_context(DeadLetters(str(options.letters)))
        bar = opened.enter_context(display(quiet=options.quiet or options.as_json, retention=options.retention_ns))

        health = MetricsRegistry(time.time_ns, parts=("export", "sync"))
        deliveries = CumulativeSource()
        health.register(deliveries.collect)

        def deliver(on_settled: OnSettled) -> OtlpExporter:
            retry = RetryPolicy(max_time=options.give_up_after)
            made = connect(delivery, workers=options.workers, retry=retry, on_settled=on_settled)
            deliveries.replace(lambda: delivery_samples(made.stats.report()))
            return made

        syncing = SyncEngine(
            options.settings(),
            platform,
            checkpoint,
            connect=deliver,
            halt=halted.set,
            letters=letters,
            tenant=options.tenant,
            resource=resource,
            workers=options.workers,
            retry_refused=options.retry_refused,
            note=bar.note,
            on_progress=bar.tell,
        )
        health.register(lambda: sync_samples(syncing.latest, options.retention_ns))
        shown = export_metrics(health, options.metrics_listen, service_name=options.service_name, quiet=options.quiet)
        with handle_signals(syncing.stop), shown:
            try:
                report = syncing.run()
            except RunspanError as failure:
                error, report = failure, syncing.report()
    kept = replace(
        report, kept=letters.kept, lost=letters.lost, kept_in=letters.path, keeping_failed=letters.write_error
    )
    return kept, error


def _platform(base: str, options: SyncOptions, halted: threading.Event) -> PlatformClient:
    def sleep(seconds: float) -> None:
        halted.wait(seconds)

    return PlatformClient(
        base,
        key_hint=f"set {KEY_VARIABLE}, or --source-key-file",
        key=partial(api_key, options.source_key_file, variable=KEY_VARIABLE, flag="--source-key-file"),
        rate_limiter=RateLimiter(options.requests_per_minute, sleep=sleep),
        sleep=sleep,
        halted=halted.is_set,
        connections=options.concurrency + 1,
    )


@contextmanager
def handle_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C ends the sync in order, a second one at once. Signals reach only the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * SECOND)


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
    type=Duration(),
    metavar="TIME",
    show_default="all that the platform has",
    help="Begin with runs that started in the last 24h, 7d, or any number of m, h or d. A later sync goes on where the "
    "last one was, however long ago.",
)
@option(
    "--workflow",
    "workflows",
    type=Utf8Text(),
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
    type=Duration(),
    metavar="TIME",
    show_default="trust the list",
    help="With each rescan fetch the finished runs that started in this last while again, and compare them whole.",
)
@option(
    "--resend",
    type=Duration(),
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
    options = SyncOptions(**given)
    if options.resend and options.follow:
        hint = "stop the one that follows, run this once, and start it again"
        raise SettingError(where="--resend", expected="a sync that ends", got="--follow", hint=hint)
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    report, error = run_sync(options)
    _print(report, options)
    if error is not None:
        raise error
    ctx.exit(_exit_code(report, options))


def _print(report: SyncReport, options: SyncOptions) -> None:
    if options.as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    if options.quiet and report.complete and not report.threatened:
        return
    for line in report.summary_lines():
        click.echo(line, err=True)
    for hint in dict.fromkeys(filter(None, (hint_on(reason) for _, reason in report.rejected_now))):
        click.echo(f"  hint: {hint}", err=True)


def _exit_code(report: SyncReport, options: SyncOptions) -> int:
    if report.stopped:
        return INTERRUPTED
    wrong = report.counts.refused + report.counts.rejected + report.refused_before + report.counts.odd
    if not options.follow:
        return 0 if report.complete else INCOMPLETE
    return INCOMPLETE if wrong or report.lost else 0
