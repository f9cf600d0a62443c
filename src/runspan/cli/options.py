"""Options that several commands share, and what their values open: backends, receivers, metrics."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

from runspan.backends import connect as connect_backend
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.contracts import TraceReader
from runspan.delivery import (
    GRPC,
    HTTP,
    DeadLetters,
    ExporterConfig,
    OnSettled,
    OtlpExporter,
    RetryPolicy,
    connect,
    exporter_config,
    with_api_key,
)
from runspan.errors import SettingError
from runspan.model.timestamps import SECOND
from runspan.otlp.env import read_attributes
from runspan.otlp.protobuf_writer import Resource
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.otel import push_metrics
from runspan.telemetry.prometheus import serve_metrics

F = TypeVar("F", bound=Callable[..., Any])

UNITS: Final = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
PLANS: Final = {"free": 7.0, "pro": 30.0, "enterprise": 90.0}
"""The platform's retention plans in days."""
STUCK_AFTER: Final = 900
"""Seconds without an observation after which a run counts as stuck by default: several heartbeats."""

_LOOPBACK: Final = "127.0.0.1"
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


class Seconds(click.ParamType[float]):
    """A duration like ``Duration``, as seconds."""

    name = "time"

    def __init__(self, *, shortest: float = 0.0) -> None:
        self._shortest = shortest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        seconds = Duration().convert(value, param, ctx) / SECOND
        if seconds < self._shortest:
            self.fail(f"expected at least {self._shortest:g}s, got {value!r}", param, ctx)
        return seconds


class Retention(click.ParamType[float]):
    """Days, as a number, as ``30d``, or by the name of a plan."""

    name = "days"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
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
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):)?([0-9]{1,5})", str(value))
        if match is None or int(match[2]) > 65535:
            self.fail(f"expected PORT or HOST:PORT such as 9464, got {value!r}", param, ctx)
        return (match[1] or _LOOPBACK).strip("[]"), int(match[2])


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


def grouped(name: str, kind: type[Any]) -> Callable[[F], F]:
    """Pass a command's parameters that are fields of the dataclass ``kind`` as one argument, an instance of it."""
    members = {field.name for field in fields(kind)}

    def decorate(command: F) -> F:
        @wraps(command)
        def invoke(*args: Any, **parameters: Any) -> Any:
            values = {member: parameters.pop(member) for member in members & parameters.keys()}
            return command(*args, **parameters, **{name: kind(**values)})

        return cast("F", invoke)

    return decorate


def file_option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Return an option that names a file."""
    return option(*names, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", **attributes)


def data_option(command: F) -> F:
    """``--data DIR``: the directory of the embedded store and the keys."""
    return option(
        "--data", metavar="DIR", default="runspan-data", help="Directory of the embedded store and the API keys."
    )(command)


def tenant_option(command: F) -> F:
    """``--tenant NAME``: whose runs."""
    return option(
        "--tenant",
        type=Utf8Text(),
        metavar="NAME",
        default="",
        show_default="runs without a tenant",
        help="Tenant that the runs belong to. A server with API keys accepts only the tenant of the key.",
    )(command)


def api_key_option(command: F) -> F:
    """``--api-key-file FILE``: never the key itself, since every process can read command lines."""
    return option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        show_default="the key in RUNSPAN_API_KEY, if any",
        help="File with the API key of a runspan server.",
    )(command)


def json_option(command: F) -> F:
    """``--json``: for scripts."""
    return option("--json", "as_json", is_flag=True, help="Print JSON on standard output, for scripts.")(command)


def quiet_option(command: F) -> F:
    """``--quiet``: for cron."""
    return option(
        "--quiet", is_flag=True, help="Show no progress, and print a report only if something is wrong: for cron."
    )(command)


def port_option(command: F) -> F:
    """``--port``: where a server listens."""
    return option(
        "--port", default=8321, type=click.IntRange(0, 65535), help="Port to listen on; 0 selects a free one."
    )(command)


def concurrency_option(*names: str, default: int = 4, most: int = 64, help: str) -> Callable[[F], F]:
    """Return an option for the number of requests in flight."""
    return option(
        *(names or ("--concurrency",)), type=click.IntRange(1, most), metavar="COUNT", default=default, help=help
    )


def retry_max_time_option(help: str) -> Callable[[F], F]:
    """``--retry-max-time TIME``: how long a failing peer is retried."""
    return option("--retry-max-time", type=Seconds(), metavar="TIME", default="5m", help=help)


def metrics_option(command: F) -> F:
    """``--metrics-listen [HOST:]PORT``: see ``export_metrics``."""
    return option(
        "--metrics-listen",
        type=Address(),
        metavar="[HOST:]PORT",
        show_default="no metrics endpoint",
        help="Serve Prometheus metrics at /metrics on this address. A port alone is on this machine only; port 0 "
        "selects a free one.",
    )(command)


@contextmanager
def export_metrics(
    metrics: MetricsRegistry, listen: tuple[str, int] | None, *, service_name: str, quiet: bool
) -> Iterator[None]:
    """Export the metrics while the block runs: at an address, and over OTLP if the environment configures that."""
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
    """Where runs are read from, and whose: the values of ``backend_options``."""

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
        if self.kind == "rest":
            return RunspanApiReader(self.url, api_key=api_key(self.api_key_file))
        directory = self.url.removeprefix("sqlite:")
        if directory and directory != self.url and not Path(directory, FILE_NAME).exists():
            raise SettingError(
                "no runs are kept here",
                where=directory,
                expected="a directory that `runspan serve` has written",
                hint="name it with --data, or a running server with --backend http://127.0.0.1:8321",
            )
        try:
            return connect_backend(self.url, env=os.environ, services=services)
        except SettingError as error:
            if error.where == "backend" and error.hint.startswith("write "):
                error.hint = "write sqlite:DIR, or http://HOST:PORT of a running runspan server"
            raise


def backend_options(command: F) -> F:
    """``--data``, ``--backend``, ``--tenant``, ``--api-key-file``: passed as ``backend``, a ``BackendOptions``."""
    backend = option(
        "--backend",
        "backend_url",
        metavar="URL",
        show_default="the store in --data",
        help="Backend to read from: sqlite:DIR, tempo+http://HOST:PORT, jaeger+http://HOST:PORT, or http://HOST:PORT "
        "of a running runspan server.",
    )
    return data_option(backend(tenant_option(api_key_option(grouped("backend", BackendOptions)(command)))))


def backend_kind(url: str) -> str:
    """Return the kind of backend: ``rest`` for a runspan server, ``sqlite``, or what ``kind+http://…`` names."""
    if url.lower().startswith(("http://", "https://")):
        return "rest"
    kind, plus, _ = url.partition(":")[0].partition("+")
    return kind.lower() if plus else "sqlite"


# Receivers.


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """Where and how traces are sent: the values of ``receiver_options``, and of options that only some commands have.

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
        config = exporter_config(
            otlp_environment(self.api_key_file),
            endpoint=self.endpoint,
            protocol=self.protocol,
            compression=self.compression,
            timeout=self.timeout,
        )
        return config.as_replay() if self.replay else config

    def connect(
        self, config: ExporterConfig, *, letters: DeadLetters | None = None, on_settled: OnSettled | None = None
    ) -> OtlpExporter:
        """Open an exporter; see ``runspan.delivery.connect``."""
        retry = RetryPolicy(budget=self.retry_max_time)
        return connect(config, workers=self.export_concurrency, retry=retry, letters=letters, on_settled=on_settled)

    def resource(self) -> Resource:
        """Return the sender: the service name and ``OTEL_RESOURCE_ATTRIBUTES``."""
        attributes = read_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        attributes.pop("service.name", None)  # --service-name and OTEL_SERVICE_NAME take precedence
        return Resource(self.service_name, attributes)


def receiver_options(command: F) -> F:
    """``--endpoint``, ``--protocol``, ``--service-name``, ``--replay``, ``--tenant``, ``--api-key-file``.

    They are passed as ``receiver``, a ``ReceiverOptions``. The command adds ``--retry-max-time`` and an option for
    ``export_concurrency``.
    """
    endpoint = option(
        "--endpoint",
        metavar="URL",
        show_default="OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318",
        help="OTLP receiver, such as http://127.0.0.1:8321 or, with grpc, 127.0.0.1:4317.",
    )
    protocol = option(
        "--protocol",
        type=click.Choice([HTTP, GRPC]),
        show_default=f"OTEL_EXPORTER_OTLP_PROTOCOL, else {HTTP}",
        help="Protocol of the receiver.",
    )
    service_name = option(
        "--service-name",
        type=Utf8Text(),
        metavar="NAME",
        env=("RUNSPAN_SERVICE_NAME", "OTEL_SERVICE_NAME"),
        default="runspan",
        help="The service.name of the traces; OTEL_RESOURCE_ATTRIBUTES adds attributes.",
    )
    replay = option(
        "--replay",
        is_flag=True,
        help="Mark what is sent as already counted: a Collector forwards it without counting it in metrics and alerts "
        "(the header x-runspan-replay).",
    )
    command = tenant_option(api_key_option(grouped("receiver", ReceiverOptions)(command)))
    return endpoint(protocol(service_name(replay(command))))


def api_key(file: Path | None, *, variable: str = "RUNSPAN_API_KEY", flag: str = "--api-key-file") -> str | None:
    """Return the key in the file, else in the variable. Errors say where the key is, never what it is."""
    where, text = variable, os.environ.get(variable, "")
    if file is not None:
        where = str(file)
        try:
            text = file.read_text("utf-8", "replace")
        except OSError as error:
            raise SettingError(
                where=where,
                expected="a file with an API key",
                got=error.strerror or str(error),
                hint=f"check {flag} and {_variable(flag)}",
            ) from None
    key = text.strip()
    if not key and file is None:
        return None
    if not _API_KEY.fullmatch(key):
        got = "other characters" if key else "an empty file"
        raise SettingError(where=where, expected="one API key in printable ASCII", got=got)
    return key


def otlp_environment(key_file: Path | None) -> dict[str, str]:
    """Return the environment with the API key added to its OTLP headers."""
    key = api_key(key_file)
    return dict(os.environ) if key is None else with_api_key(os.environ, key)
