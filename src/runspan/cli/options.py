"""Options that several commands share, and what their values open: backends, receivers, metrics."""

from __future__ import annotations

import os
import re
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.core import ParameterSource

from runspan.errors import ConfigError
from runspan.model.timestamps import MOMENT_FORMS, SECOND, UNITS, parse_moment
from runspan.otlp.env import read_attributes

if TYPE_CHECKING:  # imports that take long are made by the functions that need them
    from runspan.contracts import TraceReader
    from runspan.delivery import DeadLetters, ExporterConfig, OnSettled, OtlpExporter
    from runspan.http.retry import RetryPolicy
    from runspan.otlp.protobuf_writer import Resource
    from runspan.telemetry import MetricsRegistry

F = TypeVar("F", bound=Callable[..., Any])

PLANS: Final = {"free": 7.0, "pro": 30.0, "enterprise": 90.0}
"""The platform's retention plans in days."""
PROTOCOLS: Final = ("http/protobuf", "grpc")
STUCK_AFTER: Final = 900
"""Seconds without an observation after which a run counts as stuck by default: several heartbeats."""

_API_KEY = re.compile(r"[\x21-\x7e]+")


# Values.


class Duration(click.ParamType[int]):
    """A number with a unit, such as ``30s``, ``5m``, ``2h`` or ``7d``, as nanoseconds; 0 needs no unit."""

    name = "time"

    def __init__(self, *, longest_days: int | None = None) -> None:
        self._longest_days = longest_days

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)([smhd])|0", str(value))
        if match is None:
            self.fail(f"expected a duration such as 30s, 5m, 2h or 7d, got {value!r}", param, ctx)
        duration = int(float(match[1]) * UNITS[match[2]]) if match[1] else 0
        if self._longest_days is not None and duration > self._longest_days * UNITS["d"]:
            self.fail(f"expected at most {self._longest_days}d, got {value!r}", param, ctx)
        return duration


class Moment(click.ParamType[int]):
    """A time, a day in UTC, or a duration before now, as nanoseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        moment = parse_moment(str(value), clock.time_ns())
        if moment is None:
            self.fail(f"expected {MOMENT_FORMS}, got {value!r}", param, ctx)
        return moment


class Seconds(click.ParamType[float]):
    """A duration like ``Duration``, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return Duration().convert(value, param, ctx) / SECOND


class Retention(click.ParamType[float]):
    """Days, as a number, as ``30d``, or by the name of a plan."""

    name = "days"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).lower()
        if text in PLANS:
            return PLANS[text]
        if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?d?", text) or float(text.rstrip("d")) <= 0:
            self.fail(f"expected days such as 90, or one of {', '.join(PLANS)}, got {value!r}", param, ctx)
        return float(text.rstrip("d"))


class Utf8Text(click.ParamType[str]):
    """Text that can be sent and stored; a shell passes any bytes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"expected UTF-8, got {value!r}", param, ctx)
        return text


class Address(click.ParamType[tuple[str, int]]):
    """``PORT``, which is on this machine only, or ``HOST:PORT``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):)?([0-9]{1,5})", str(value))
        if match is None or int(match[2]) > 65535:
            self.fail(f"expected PORT or HOST:PORT such as 9464, got {value!r}", param, ctx)
        return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


# Options.


def option(*names: str, env: str | Sequence[str] = "", **attributes: Any) -> Callable[[F], F]:
    """Return an option with its environment variable, ``RUNSPAN_MAX_BODY`` for ``--max-body``, both shown in its help.

    ``env`` replaces that variable; of several variables the first that is set counts.
    """
    flag = next(name for name in names if name.startswith("--"))
    attributes.setdefault("show_default", True)
    return click.option(*names, envvar=env or _variable(flag), show_envvar=True, **attributes)


def _variable(flag: str) -> str:
    return "RUNSPAN_" + flag[2:].replace("-", "_").upper()


def time(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Return an option whose value is a duration, in nanoseconds unless ``type`` is ``Seconds()``."""
    attributes.setdefault("type", Duration())
    return option(*names, metavar="TIME", **attributes)


def workflow(verb: str) -> Callable[[F], F]:
    """Add ``--workflow``, as ``workflow_id``, to a command that does this with runs."""
    help = f"{verb} only runs of this workflow."
    return option("--workflow", "workflow_id", type=Utf8Text(), metavar="ID", help=help)


def start_range(verb: str, since: str, until: str, **attributes: Any) -> Callable[[F], F]:
    """Add ``--from`` and ``--to``, as ``since`` and ``until``, to a command that does this with runs.

    since, until: which starts are meant by a time, in words. attributes: of ``--from``.
    """
    help = f"{verb} only runs that started {{}}"
    times = ": 2026-11-27T09:00:00Z, 2026-11-27 (in UTC), or a duration before now such as 24h."
    add_since = option("--from", "since", type=Moment(), metavar="TIME", help=help.format(since) + times, **attributes)
    add_until = option("--to", "until", type=Moment(), metavar="TIME", help=help.format(until) + ".")
    return lambda command: add_since(add_until(command))


def count(*names: str, least: int = 0, most: int | None = None, **attributes: Any) -> Callable[[F], F]:
    """Return an option whose value is a number, at least ``least``."""
    return option(*names, type=click.IntRange(least, most), metavar="COUNT", **attributes)


def mebibytes(*names: str, least: int = 1, most: int = 1 << 20, **attributes: Any) -> Callable[[F], F]:
    """Return an option whose value is given in MiB, from ``least`` to ``most``, and passed in bytes."""
    attributes |= {"type": click.IntRange(least, most), "callback": lambda ctx, param, value: value << 20}
    return option(*names, metavar="MIB", **attributes)


def concurrency(*names: str, default: int = 4, most: int = 64, help: str) -> Callable[[F], F]:
    """``--concurrency COUNT``: the number of requests in flight. ``names`` replace the flag or name its parameter."""
    return count(*(names or ("--concurrency",)), least=1, most=most, default=default, help=help)


def retry_max_time(help: str) -> Callable[[F], F]:
    """``--retry-max-time TIME``: how long a failing peer is retried."""
    return time("--retry-max-time", type=Seconds(), default="5m", help=help)


def file(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Return an option that names a file."""
    return option(*names, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", **attributes)


follow_symlinks = option(
    "--follow-symlinks",
    is_flag=True,
    help="Read what symbolic links in a folder lead to outside of it. Otherwise they are named and skipped.",
)


def dead_letter(show_default: str) -> Callable[[F], F]:
    """``--dead-letter FILE``: what was not accepted."""
    help = "Append every document that was rejected or not sent to this file. Export it to send them again."
    return file("--dead-letter", show_default=show_default, help=help)


def service_name(**attributes: Any) -> Callable[[F], F]:
    """``--service-name NAME``: the sender of the traces."""
    env = ("RUNSPAN_SERVICE_NAME", "OTEL_SERVICE_NAME")
    return option("--service-name", type=Utf8Text(), metavar="NAME", env=env, **attributes)


def grouped(name: str, kind: type[Any], *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Add the options to a command, and pass those that are fields of ``kind``, a dataclass, as one argument."""
    members = {field.name for field in fields(kind)}

    def decorate(command: F) -> F:
        @wraps(command)
        def invoke(*args: Any, **parameters: Any) -> Any:
            values = {member: parameters.pop(member) for member in members & parameters.keys()}
            return command(*args, **parameters, **{name: kind(**values)})

        for each in reversed(options):
            each(invoke)
        return cast("F", invoke)

    return decorate


data = option("--data", metavar="DIR", default="runspan-data", help="Directory of the embedded store and the API keys.")
tenant = option(
    "--tenant",
    type=Utf8Text(),
    metavar="NAME",
    default="",
    show_default="runs without a tenant",
    help="Tenant that the runs belong to. A server with API keys accepts only the tenant of the key.",
)
# Never the key itself: every process of the machine can read command lines.
api_key_file = file(
    "--api-key-file",
    show_default="the key in RUNSPAN_API_KEY, if any",
    help="File with the API key of a runspan server.",
)
protocol = option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    show_default=f"OTEL_EXPORTER_OTLP_PROTOCOL, else {PROTOCOLS[0]}",
    help="Protocol of the receiver.",
)
as_json = option("--json", "as_json", is_flag=True, help="Print JSON on standard output, for scripts.")
quiet = option(
    "--quiet", is_flag=True, help="Show no progress, and print a report only if something is wrong: for cron."
)
port = option("--port", default=8321, type=click.IntRange(0, 65535), help="Port to listen on; 0 selects a free one.")
metrics_listen = option(
    "--metrics-listen",
    type=Address(),
    metavar="[HOST:]PORT",
    show_default="no metrics endpoint",
    help="Serve Prometheus metrics at /metrics on this address. A port alone is on this machine only; port 0 selects a "
    "free one.",
)


@contextmanager
def export_metrics(
    metrics: MetricsRegistry, listen: tuple[str, int] | None, *, service_name: str, quiet: bool
) -> Iterator[None]:
    """Export the metrics while the block runs: at an address, and over OTLP if the environment configures that."""
    from runspan.telemetry.otel import push_metrics  # noqa: PLC0415
    from runspan.telemetry.prometheus import serve_metrics  # noqa: PLC0415

    with ExitStack() as stack:
        if listen is not None:
            url = stack.enter_context(serve_metrics(metrics, *listen))
            if not quiet:
                click.echo(f"runspan: metrics at {url}", err=True)
        stack.enter_context(push_metrics(metrics, os.environ, service_name=service_name))
        yield


# Backends.


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """Where runs are read from, and whose: the values of ``backend``."""

    data: str
    backend_url: str | None
    tenant: str
    api_key_file: Path | None

    @property
    def url(self) -> str:
        """The URL of the backend: without --backend that of the store in --data."""
        return self.backend_url or f"sqlite:{self.data}"

    @property
    def kind(self) -> str:
        """See ``backend_kind``."""
        return backend_kind(self.url)

    def open_reader(self, services: Sequence[str] | None = None) -> TraceReader:
        """Open the backend for reading. A store that does not exist is an error.

        ``services`` are the service names under which runs were sent, for backends that search by them; None: see
        ``runspan.connect``.
        """
        from runspan.backends import connect  # noqa: PLC0415
        from runspan.backends.runspan_api import RunspanApiReader  # noqa: PLC0415

        if self.kind == "rest":
            return RunspanApiReader(self.url, api_key=read_api_key(self.api_key_file))
        self.require_store()
        try:
            return connect(self.url, env=os.environ, services=services)
        except ConfigError as error:
            if error.where == "backend" and error.hint.startswith("write "):
                error.hint = "write sqlite:DIR, or http://HOST:PORT of a running runspan server"
            raise

    def require_store(self) -> None:
        """Raise ConfigError if the backend is an embedded store that does not exist: reading never creates one."""
        from runspan.backends.sqlite.schema import FILE_NAME  # noqa: PLC0415

        directory = self.url.removeprefix("sqlite:")
        if directory and directory != self.url and not Path(directory, FILE_NAME).exists():
            raise ConfigError(
                "no runs are kept here",
                where=directory,
                expected="a directory that `runspan serve` has written",
                hint="name it with --data, or another backend with --backend, such as http://127.0.0.1:8321",
            )


backend = grouped(
    "backend",
    BackendOptions,
    data,
    option(
        "--backend",
        "backend_url",
        metavar="URL",
        show_default="the store in --data",
        help="Backend to read from: sqlite:DIR, tempo+http://HOST:PORT, jaeger+http://HOST:PORT, or http://HOST:PORT "
        "of a running runspan server.",
    ),
    tenant,
    api_key_file,
)
"""Pass ``backend``, a ``BackendOptions``, to a command."""


def backend_kind(url: str) -> str:
    """Return the kind of backend: ``rest`` for a runspan server, ``sqlite``, or what ``kind+http://…`` names."""
    if url.lower().startswith(("http://", "https://")):
        return "rest"
    kind, plus, _ = url.partition(":")[0].partition("+")
    return kind.lower() if plus else "sqlite"


# Receivers.


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """Where and how traces are sent: the values of ``receiver``, and of options that only some commands have.

    ``timeout`` and ``retry_max_time`` are seconds.
    """

    endpoint: str | None
    protocol: str | None
    service_name: str
    replay: bool
    tenant: str
    api_key_file: Path | None
    export_concurrency: int
    retry_max_time: float
    compression: str | None = None
    timeout: float | None = None

    def config(self) -> ExporterConfig:
        """Return the exporter's configuration. It reads the API key, so a replaced key file counts from then on."""
        from runspan.delivery import exporter_config  # noqa: PLC0415

        config = exporter_config(
            os.environ,
            api_key=read_api_key(self.api_key_file),
            endpoint=self.endpoint,
            protocol=self.protocol,
            compression=self.compression,
            timeout=self.timeout,
        )
        return config.as_replay() if self.replay else config

    def connect(
        self, config: ExporterConfig, *, dead_letters: DeadLetters | None = None, on_settled: OnSettled | None = None
    ) -> OtlpExporter:
        """Open an exporter; see ``runspan.delivery.connect``."""
        from runspan.delivery import connect  # noqa: PLC0415

        return connect(
            config,
            workers=self.export_concurrency,
            retry=self.retry(),
            dead_letters=dead_letters,
            on_settled=on_settled,
        )

    def retry(self) -> RetryPolicy:
        """Return when a failing request is sent again."""
        from runspan.http.retry import RetryPolicy  # noqa: PLC0415

        return RetryPolicy(max_time=self.retry_max_time)

    def resource(self) -> Resource:
        """Return the sender: the service name and ``OTEL_RESOURCE_ATTRIBUTES``."""
        from runspan.otlp.protobuf_writer import Resource  # noqa: PLC0415

        attributes = read_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        attributes.pop("service.name", None)  # --service-name and OTEL_SERVICE_NAME take precedence
        return Resource(self.service_name, attributes)


receiver = grouped(
    "receiver",
    ReceiverOptions,
    option(
        "--endpoint",
        metavar="URL",
        show_default="OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318",
        help="OTLP receiver, such as http://127.0.0.1:8321 or, with grpc, 127.0.0.1:4317.",
    ),
    protocol,
    service_name(default="runspan", help="The service.name of the traces; OTEL_RESOURCE_ATTRIBUTES adds attributes."),
    option(
        "--replay",
        is_flag=True,
        help="Mark what is sent as already counted: a Collector forwards it without counting it in metrics and alerts "
        "(the header x-runspan-replay).",
    ),
    tenant,
    api_key_file,
)
"""Pass ``receiver``, a ``ReceiverOptions``, to a command, which adds ``--retry-max-time`` and an option for
``export_concurrency``."""


def state_url(*, default: str, help: str) -> Callable[[F], F]:
    """``--state URL``, as ``state_url``, and ``--state-url-file``: a database; see ``read_state_url``."""
    add_url = option(
        "--state", "state_url", metavar="URL", default="", show_default=default, callback=_refuse_password, help=help
    )
    add_file = file("--state-url-file", show_default="the URL of --state", help="File with the URL of --state.")
    return lambda command: add_url(add_file(command))


def _refuse_password(ctx: click.Context, param: click.Parameter, url: str) -> str:
    """Refuse a password in an argument: every process of the machine can read command lines."""
    given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    if given and ("password=" in url or ":" in url.partition("://")[2].rpartition("@")[0]):
        raise ConfigError(
            where="--state",
            expected="a URL without a password, as every process of this machine can read it",
            got="one with a password",
            hint="put the URL into RUNSPAN_STATE or --state-url-file, or the password into PGPASSWORD or ~/.pgpass",
        )
    return url


def read_state_url(url: str, file: Path | None) -> str:
    """Return the URL of the values of ``state_url``; "" if there is none."""
    if file is None:
        return url.strip()
    url = read_secret(file, "the URL of a database", "--state-url-file")
    if not url:
        raise ConfigError(where=str(file), expected="the URL of a database", got="an empty file")
    return url


def read_secret(file: Path, what: str, flag: str) -> str:
    """Return the text of a file that an option names. Errors say where it is, never what it is."""
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(
            where=str(file),
            expected=f"a file with {what}",
            got=error.strerror or str(error),
            hint=f"check {flag} and {_variable(flag)}",
        ) from None


def read_api_key(file: Path | None, *, variable: str = "RUNSPAN_API_KEY", flag: str = "--api-key-file") -> str | None:
    """Return the key in the file, else in the variable. Errors say where the key is, never what it is."""
    where, key = variable, os.environ.get(variable, "").strip()
    if file is not None:
        where, key = str(file), read_secret(file, "an API key", flag)
    elif not key:
        return None
    if not _API_KEY.fullmatch(key):
        got = "other characters" if key else "an empty file"
        raise ConfigError(where=where, expected="one API key in printable ASCII", got=got)
    return key
