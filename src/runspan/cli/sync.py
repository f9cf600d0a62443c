"""``runspan sync``: runs from the platform's REST API to any OTLP receiver, once or continuously."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from runspan.cli import options
from runspan.cli.app import INCOMPLETE, INTERRUPTED, handle_signals, reduce_garbage_collection
from runspan.cli.output import ProgressDisplay, format_elapsed, print_report, progress_display
from runspan.delivery import DeadLetters, OnSettled, OtlpExporter, export_samples
from runspan.errors import ConfigError
from runspan.model.document import RUN_STATUSES
from runspan.model.timestamps import SECOND, UNITS
from runspan.platform_api.client import ApiClient, PlatformClient, parse_api_url
from runspan.storage.shared import connect_postgres
from runspan.sync.checkpoint import POSTGRES_SCHEMA, Checkpoint, sync_binding
from runspan.sync.context import ListFilter, SyncConfig, SyncTotals
from runspan.sync.engine import SyncEngine
from runspan.sync.report import SyncProgress, SyncReport, sync_samples
from runspan.sync.request_budget import RequestBudget, account_of
from runspan.sync.service import SyncService
from runspan.telemetry import MetricsRegistry

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

KEY_VARIABLE: Final = "RUNSPAN_PLATFORM_API_KEY"
REQUESTS_PER_MINUTE: Final = 900
"""Nine tenths of the platform's limit of 1000 reads a minute for a key, which other clients may share."""

_SHORTEST_POLL: Final = SECOND // 10
_LINE_EVERY: Final = 60.0
_RATE_OVER: Final = 10.0


@click.command()
@click.argument("url", metavar="URL", envvar="RUNSPAN_SYNC_URL")
@options.receiver
@options.file(
    "--state-file",
    default=Path("runspan-sync.sqlite3"),
    help="Database in which the sync records each run. It belongs to one platform, receiver, tenant and filter. "
    "Several syncs on one machine may share it: they divide the runs by workflow, and one takes over from another that "
    "was killed.",
)
@options.state_url(
    default="the file of --state-file",
    help="PostgreSQL database in place of the file, which syncs on several machines may share, such as "
    "postgresql://runspan@db/runspan. A password only in the variable, or in --state-url-file.",
)
@options.option(
    "--follow", is_flag=True, help="Continue until stopped: send new runs, and unfinished ones until they end."
)
@options.time(
    "--since",
    show_default="all runs that the platform has",
    help="Let the first sync begin with runs that started this long ago, such as 24h or 7d. Later syncs resume where "
    "the last one stopped, however long ago.",
)
@options.option(
    "--workflow",
    "workflows",
    type=options.Utf8Text(),
    multiple=True,
    metavar="ID",
    help="Sync only runs of this workflow. The option may be repeated.",
)
@options.option(
    "--status",
    "statuses",
    type=click.Choice(RUN_STATUSES),
    multiple=True,
    metavar="STATUS",
    help="Sync only runs that are listed with this status; a run that was listed once is followed to its end. The "
    f"option may be repeated: {', '.join(RUN_STATUSES)}.",
)
@options.option(
    "--retention",
    type=options.Retention(),
    env="RUNSPAN_PLATFORM_RETENTION",
    callback=lambda ctx, param, days: None if days is None else int(days * UNITS["d"]),
    metavar="DAYS",
    show_default="not checked",
    help="How long the platform keeps runs: days, or one of the plans free (7), pro (30), enterprise (90). The sync "
    "warns if runs will be deleted before they can be fetched.",
)
@options.count(
    "--requests-per-minute",
    default=REQUESTS_PER_MINUTE,
    help="Limit of requests to the platform, which allows 1000 reads a minute for a key; 0: no limit. Syncs that "
    "share a state and use the same key have it together.",
)
@options.concurrency(default=8, help="Number of requests to the platform in flight.")
@options.concurrency("--export-concurrency", help="Number of requests to the receiver in flight.")
@options.time(
    "--poll",
    default="15s",
    callback=lambda ctx, param, interval: max(interval, _SHORTEST_POLL),
    help="How often --follow looks for new runs and refreshes unfinished ones.",
)
@options.time(
    "--rescan",
    show_default="1h with --follow, else every sync",
    help="How often to read the complete list, for runs that changed and runs that appeared late.",
)
@options.time(
    "--recheck",
    default=0,
    show_default="rely on the list",
    help="With each rescan, fetch the finished runs that started this long ago or later again, and compare them.",
)
@options.time(
    "--resend",
    default=0,
    show_default="send nothing again",
    help="First send all acknowledged runs that started this long ago or later again, for a receiver that has lost "
    "some. Not with --follow.",
)
@options.time(
    "--heartbeat",
    default="5m",
    help="Send an unfinished run again after this time without a change, as a sign that it is alive; 0: never.",
)
@options.retry_max_time(
    "How long a platform or a receiver that does not respond is retried. With --follow it is retried forever."
)
@options.dead_letter(show_default="STATE_FILE.dead-letters.ndjson")
@options.option("--retry-refused", is_flag=True, help="Retry runs that were refused in an earlier sync.")
@options.file(
    "--platform-key-file",
    show_default=f"the key in {KEY_VARIABLE}, if any",
    help="File with the platform's API key. It is read again when the platform refuses the key, so replace the file to "
    "rotate the key.",
)
@options.metrics_listen
@options.quiet
@options.as_json
@options.grouped("config", SyncConfig)
@click.pass_context
def sync(
    ctx: click.Context,
    config: SyncConfig,
    receiver: options.ReceiverOptions,
    url: str,
    state_file: Path,
    state_url: str,
    state_url_file: Path | None,
    workflows: tuple[str, ...],
    statuses: tuple[str, ...],
    requests_per_minute: int,
    dead_letter: Path | None,
    platform_key_file: Path | None,
    metrics_listen: tuple[str, int] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fetch runs from the platform, and send them as traces.

    URL, or RUNSPAN_SYNC_URL, is that of the platform or of another runspan server, up to /api/v1. The sync reads the
    list of runs, fetches each run, the oldest first, sends it to the receiver, and records it in its state once the
    receiver has it. It may be stopped or killed at any time: the next sync resumes there, and no run is lost or
    duplicated.

    An unfinished run is sent as a snapshot, again and again until it ends, but each finished step only once; a finished
    run that changed is sent as a revision. A document that cannot be carried exactly, or that the receiver rejects, is
    reported, kept in the file of dead letters, and not retried until it changes. A run that cannot be fetched because
    the platform, or a gateway in front of it, fails is retried until it can.

    \b
    Examples:
      runspan sync https://workflows.example.com --endpoint http://127.0.0.1:8321
      runspan sync https://workflows.example.com --follow --retention pro
      runspan sync https://workflows.example.com --since 24h --status failed --status timed_out
      runspan sync https://workflows.example.com --resend 24h --replay
      runspan sync http://127.0.0.1:8321 --endpoint tempo:4317 --protocol grpc --requests-per-minute 0

    Secrets are never options: the platform's API key comes from RUNSPAN_PLATFORM_API_KEY or a file, the receiver's from
    RUNSPAN_API_KEY or a file, other headers come from OTEL_EXPORTER_OTLP_HEADERS.

    SIGTERM, SIGHUP or Ctrl-C ends the sync within seconds; a second one ends it at once. The report is printed on
    standard error. The exit code is 0 if the receiver has everything, 1 if runs were refused or could not be fetched,
    and 130 if the sync was interrupted. With --follow, being stopped is not an interruption.
    """
    if config.resend and config.follow:
        hint = "stop the sync with --follow, run this one, and start it again"
        raise ConfigError(where="--resend", expected="a sync without --follow", got="--follow", hint=hint)
    database_url = options.read_state_url(state_url, state_url_file)
    if database_url and ctx.get_parameter_source("state_file") is not ParameterSource.DEFAULT:
        raise ConfigError(where="--state-file", expected="no other state than that of --state", got=str(state_file))
    reduce_garbage_collection()
    config = replace(
        config,
        filters=tuple(ListFilter(*each) for each in dict.fromkeys(product(workflows or (None,), statuses or (None,)))),
        retry_max_time=receiver.retry_max_time,
    )
    metrics = MetricsRegistry(time.time_ns, components=("export", "sync"))
    registration = ExitStack()
    exporter_config = receiver.config()
    resource = receiver.resource()
    base = parse_api_url("URL", url, key_variable=KEY_VARIABLE)
    key = partial(options.read_api_key, platform_key_file, variable=KEY_VARIABLE, flag="--platform-key-file")
    halted = threading.Event()
    account = account_of(base, key())
    resources = ExitStack()
    place: Path | PostgresDatabase = state_file
    if database_url:
        place = resources.enter_context(closing(connect_postgres(database_url, POSTGRES_SCHEMA)))
    rate_limiter = RequestBudget(requests_per_minute, place, account=account, sleep=halted.wait)
    key_hint = f"set {KEY_VARIABLE}, or --platform-key-file"
    binding = sync_binding(base, exporter_config.display_url, receiver.tenant, set(workflows), set(statuses))

    def connect(on_settled: OnSettled) -> OtlpExporter:
        exporter = receiver.connect(exporter_config, on_settled=on_settled)
        registration.close()  # the counters of the exporter before stay
        registration.callback(metrics.register(lambda: export_samples(exporter.stats.report())))
        return exporter

    with (
        resources,
        closing(rate_limiter),
        DeadLetters(str(dead_letter or f"{state_file}.dead-letters.ndjson")) as dead_letters,
        progress_display(quiet=quiet or as_json, unit="runs", line_every=_LINE_EVERY) as display,
    ):
        shown = _SyncDisplay(display, config.retention)

        @contextmanager
        def start(totals: SyncTotals) -> Iterator[SyncEngine]:
            halted.clear()
            with closing(Checkpoint(place, binding)) as checkpoint:
                checkpoint.spans.bind_receiver(exporter_config.identity)
                yield SyncEngine(
                    config,
                    PlatformClient(
                        ApiClient(base, key_hint=key_hint, connections=config.concurrency + 1),
                        key=key,
                        rate_limiter=rate_limiter,
                        sleep=halted.wait,
                        halted=halted.is_set,
                    ),
                    checkpoint,
                    connect=connect,
                    halt=halted.set,
                    dead_letters=dead_letters,
                    tenant=receiver.tenant,
                    resource=resource,
                    totals=totals,
                    log=display.note,
                    on_progress=shown.update,
                )

        with SyncService(
            start, follow=config.follow, retry_max_time=config.retry_max_time, log=display.note
        ) as service:
            metrics.register(lambda: sync_samples(service.latest, config.retention))
            exported = options.export_metrics(metrics, metrics_listen, service_name=receiver.service_name, quiet=quiet)
            with handle_signals(service.stop), exported:
                report, error = service.run()
    report = report.with_dead_letters(dead_letters)
    reasons = [reason for _, reason in report.rejected_now]
    print_report(report, reasons, as_json=as_json, silent=quiet and report.complete and not report.at_risk)
    if error is not None:
        raise error
    ctx.exit(_exit_code(report, config.follow))


class _SyncDisplay:
    """Shows rate, backlog and lag of a sync. ``retention`` is how long the platform keeps runs, in nanoseconds."""

    def __init__(self, display: ProgressDisplay, retention: int | None) -> None:
        self._display = display
        self._retention = retention
        self._fetched: deque[tuple[float, int]] = deque(maxlen=100)

    def update(self, progress: SyncProgress) -> None:
        now = time.monotonic()
        self._fetched.append((now, progress.counts.fetched))
        while len(self._fetched) > 2 and now - self._fetched[0][0] > _RATE_OVER:
            self._fetched.popleft()
        total = None if progress.first_scan else progress.tracked
        self._display.update(self._text(progress), completed=progress.tracked - progress.backlog, total=total)

    def _text(self, progress: SyncProgress) -> str:
        (began, before), (now, fetched) = self._fetched[0], self._fetched[-1]
        parts = [f"{(fetched - before) / (now - began) if now > began else 0.0:,.1f}/s"]
        if progress.first_scan:
            parts.append(f"reading the list, {progress.counts.pages:,} pages")
        parts.append(f"backlog {progress.backlog:,}")
        if progress.unfinished:
            parts.append(f"{progress.unfinished:,} unfinished")
        if progress.oldest_backlog is not None:
            lag = max(0, time.time_ns() - progress.oldest_backlog)
            parts.append(f"lag {format_elapsed(lag)}")
            if self._retention is not None:
                left = self._retention - lag
                parts.append(f"deleted in {format_elapsed(left)}" if left > 0 else "past the platform's retention")
        refused = progress.counts.refused + progress.counts.rejected
        if refused:
            parts.append(f"{refused:,} refused")
        return ", ".join(parts)


def _exit_code(report: SyncReport, follow: bool) -> int:
    if report.stopped:
        return INTERRUPTED
    if not follow:
        return 0 if report.complete else INCOMPLETE
    refused = report.counts.refused + report.counts.rejected + report.refused_before + report.counts.unusable
    return INCOMPLETE if refused or report.documents_lost else 0
