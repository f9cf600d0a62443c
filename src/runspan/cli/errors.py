"""How a command ends when something outside ends it: errors told in two lines, signals, readers that went away.

What to do when a receiver does not take runs, by the words in its reason.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, cast

import click

from runspan.errors import ERROR_STATUSES, RunspanError, error_status

HINTS: Final = (
    (
        "Txn is too big",
        "a span of that run is over the 9 to 10 MB that Jaeger's Badger takes; another storage takes it, or Tempo",
    ),
    ("no org id", "name the tenant: OTEL_EXPORTER_OTLP_HEADERS=X-Scope-OrgID=NAME"),
    ("HTTP 401", "set RUNSPAN_API_KEY, or --api-key-file, to a key of the server"),
    ("answers to no other name", "call it by 127.0.0.1, or start it with: runspan serve --allow-host NAME"),
    ("HTTP 403", "use an API key with the permission runs:write"),
    ("HTTP 404", "is this the address of an OTLP receiver? a path in the URL is used as it is"),
    ("ConnectError", "is a receiver listening there? start one with: runspan serve"),
    ("UNAVAILABLE", "is a gRPC receiver listening there? `runspan serve` takes http/protobuf only"),
)
"""What stands in the reason why runs were not taken, and what to do then."""


def hint_on(reason: str) -> str:
    """What to do about a receiver's refusal, or ""."""
    return next((hint for words, hint in HINTS if words in reason), "")


INCOMPLETE: Final = 1
INTERRUPTED: Final = 130
READER_GONE: Final = 141

_WORDS: Final = {
    0: "all well",
    1: "not everything was accepted, or an internal error",
    2: "wrong use, or a wrong setting",
    3: "a document or payload cannot be read",
}


class CliGroup(click.Group):
    """A group that tells our errors in a few lines, without a stack trace, and ends with their exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """See ``click.Command``; with streams that were closed by whoever started us."""
        _replace_closed_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:  # while the arguments were read: --help and --version print by then
            _format_system_error(error)
            sys.exit(INCOMPLETE)

    def invoke(self, ctx: click.Context) -> Any:
        _accept_any_text()
        try:
            return super().invoke(ctx)
        except RunspanError as error:
            for line in format_error(error):
                click.echo(line, err=True)
            ctx.exit(error_status(error).exit_code)
        except KeyboardInterrupt:
            click.echo("runspan: interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has enough. Python would complain again while it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(READER_GONE)
        except OSError as error:
            _format_system_error(error)
            ctx.exit(INCOMPLETE)


def _format_system_error(error: OSError) -> None:
    place = f"{escape_control(str(error.filename))}: " if error.filename else ""
    click.echo(f"runspan: {place}{error.strerror or error}", err=True)


def format_error(error: RunspanError) -> list[str]:
    """The lines that a person reads: what is wrong, and what to do."""
    suffix = f" ({error.hint})" if error.hint else ""
    text = str(error).removesuffix(suffix) or type(error).__name__
    lines = [f"runspan: {escape_control(text)}"]
    return [*lines, f"  hint: {escape_control(error.hint)}"] if error.hint else lines


def escape_control(text: str) -> str:
    """Text on one line that cannot steer a terminal: control characters are spelled out."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def exit_codes() -> str:
    """The exit codes, a line each, for help."""
    words = {code: [text] for code, text in _WORDS.items()}
    for row in ERROR_STATUSES.values():
        if row.exit_code not in _WORDS:
            words.setdefault(row.exit_code, []).append(row.code.lower().replace("_", " "))
    words |= {INTERRUPTED: ["interrupted"], READER_GONE: ["the reader of the output went away"]}
    return "\n".join(f"  {code:<4} {_either(words[code])}" for code in sorted(words))


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: with its report. Signals reach only the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Closed(io.RawIOBase):
    """Standard output that was closed: nothing can be written, and who tries hears so."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if len(data):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
        return 0


def _replace_closed_streams() -> None:
    """Python has None for a stream that was closed (``2>&-``), which no library expects.

    What would be told on standard error then goes nowhere; a command that has something to print on standard output
    fails. The descriptors are taken as well: a file that is opened later must not be what a library prints into.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(cast("io.BufferedWriter", _Closed()), encoding="utf-8", write_through=True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends


def _accept_any_text() -> None:
    """A terminal that cannot show a character gets it spelled out: run ids may be of any script."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
