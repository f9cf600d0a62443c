"""The ``runspan`` command: its subcommands, and how errors, signals and closed streams end them."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, Final, cast

import click
from click.shell_completion import CompletionItem

from runspan._version import __version__
from runspan.cli.output import escape_control, print_error
from runspan.errors import ERROR_STATUSES, RunspanError, error_status
from runspan.extras import missing_extra
from runspan.system import HANGUP

INCOMPLETE: Final = 1
INTERRUPTED: Final = 130
OUTPUT_CLOSED: Final = 141

_EXIT_CODES: Final = {
    0: "success",
    1: "not everything was accepted, or an internal error",
    2: "invalid usage or configuration",
    3: "a document or a payload cannot be read",
}
_COMMANDS: Final = {
    "archive": (
        "archive",
        "archive_runs",
        "Write finished runs to files, and verify them, before retention deletes the runs.",
    ),
    "backup": ("backup", "backup", "Copy a data directory into one file, also while a server writes to it."),
    "check": ("check", "check", "Verify everything in a data directory, also while a server uses it."),
    "demo": ("demo", "demo", "Send sample runs through a server, and compare what comes back."),
    "erase": ("erase", "erase", "Erase everything of one tenant from an embedded store."),
    "export": ("export", "export", "Send run documents as traces."),
    "get": ("query", "get", "Print one run document, exactly."),
    "keys": (
        "keys",
        "keys",
        "Manage the API keys of a server, which are kept hashed in its data directory, or in the database of --state.",
    ),
    "list": ("query", "list_runs", "List runs, newest first or by another order."),
    "resolve": ("resolve", "resolve_run", "End a run whose engine died, so that it is stuck no more."),
    "restore": ("backup", "restore", "Put a backup into a data directory."),
    "serve": ("serve", "serve", "Serve the web pages and the REST API, and receive traces."),
    "stats": (
        "stats",
        "stats",
        "Print how many runs there were, how long they took, what they cost, and how they failed.",
    ),
    "sync": ("sync", "sync", "Fetch runs from the platform, and send them as traces."),
    "verify": ("verify", "verify", "Check that a backend returns runs exactly as they were sent."),
}
"""Module, function and short help of each command. A command's module is imported when the command is used."""


class CliGroup(click.Group):
    """Import commands when they are used; print runspan's errors without a traceback and exit with their code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, function, _ = _COMMANDS[cmd_name]
        try:
            return cast("click.Command", getattr(import_module(f"runspan.cli.{module}"), function))
        except ModuleNotFoundError as error:
            raise missing_extra(error, f"runspan {cmd_name}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, _, short_help) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands without importing them."""
        found = [
            CompletionItem(name, help=short_help)
            for name, (_, _, short_help) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command as ``click.Command.main`` does, also if standard streams are closed."""
        _replace_closed_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:
            file = error.filename or ("standard output" if error.errno == errno.EBADF else "")
            place = f"{escape_control(str(file))}: " if file else ""
            click.echo(f"runspan: {place}{error.strerror or error}", err=True)
            sys.exit(INCOMPLETE)

    def invoke(self, ctx: click.Context) -> Any:
        _escape_unencodable_output()
        try:
            return super().invoke(ctx)
        except RunspanError as error:
            print_error(error)
            ctx.exit(error_status(error).exit_code)
        except KeyboardInterrupt:
            click.echo("runspan: interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Python flushes standard output when it exits, and would report the closed pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(OUTPUT_CLOSED)


def _exit_codes() -> str:
    """Return the table of exit codes for the help text, one code per line."""
    meanings = {code: [text] for code, text in _EXIT_CODES.items()}
    for row in ERROR_STATUSES.values():
        if row.exit_code not in _EXIT_CODES:
            meanings.setdefault(row.exit_code, []).append(row.code.lower().replace("_", " "))
    meanings |= {INTERRUPTED: ["interrupted"], OUTPUT_CLOSED: ["the reader closed the output"]}
    return "\n".join(f"  {code:<4} {_join_or(meanings[code])}" for code in sorted(meanings))


def _join_or(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@click.group(
    cls=CliGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""\
`runspan COMMAND -h` describes a command, its options and their environment variables: --max-body is also
RUNSPAN_MAX_BODY. TIME is a duration, a number with a unit: 30s, 5m, 2h or 7d.

\b
Exit codes:
{_exit_codes()}
""",
)
@click.version_option(__version__, message="runspan %(version)s")
def main() -> None:
    """Carry workflow run documents as OpenTelemetry traces, and get the exact documents back.

    \b
    Try it with sample runs:
      runspan demo
    Start a server with an embedded store, and send runs to it:
      runspan serve --data ./data
      runspan export runs.ndjson --endpoint http://127.0.0.1:8321
    Read runs back, from the store's directory or from the server:
      runspan list --data ./data --status failed
      runspan get run_abc123 --backend http://127.0.0.1:8321
    """


@contextmanager
def handle_signals(stop: Callable[[], None] | None = None, *, repeat: bool = False) -> Iterator[None]:
    """End the block on SIGTERM, and on SIGHUP unless it is ignored, as on Ctrl-C, by KeyboardInterrupt.

    With ``stop``, the first of these signals calls it instead, and the second raises KeyboardInterrupt, or calls it
    again if ``repeat`` is true. Python delivers signals to the main thread only; on another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        if number == HANGUP:
            _discard_output_to_closed(terminals)
        if stop is None:
            raise KeyboardInterrupt
        call = stop
        if not repeat:
            stop = None
        call()

    numbers = {signal.SIGTERM, HANGUP} | ({signal.SIGINT} if stop is not None else set())
    if signal.getsignal(HANGUP) is signal.SIG_IGN:  # under nohup
        numbers.discard(HANGUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard_output_to_closed(terminals: list[int]) -> None:
    """Discard what is written to terminals that are gone: a write would fail, and end the command before its report.

    ``terminals``: file descriptors that were terminals.
    """
    for number in terminals:
        if not os.isatty(number):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


def reduce_garbage_collection() -> None:
    """Collect garbage rarely: documents and spans hold no reference cycles, so collections only cost time."""
    gc.set_threshold(50_000, 20, 20)


def _replace_closed_streams() -> None:
    """Replace streams that were closed by the caller (``2>&-``), for which Python has None.

    Standard error is discarded then, and a command that writes to standard output fails. The file descriptors are
    occupied too, so that a file opened later does not receive what is printed.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        # Unbuffered: a write fails at once, since the descriptor is open to read only.
        output = cast("io.BufferedWriter", io.FileIO(1, "w"))
        sys.stdout = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends


def _escape_unencodable_output() -> None:
    """Escape characters that the terminal's encoding lacks: run ids may be in any script."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
