"""Options that several commands share, how an option gets its environment variable, and the words for times.

How a command that runs for long tells its health: ``--metrics-listen`` for Prometheus, the environment for OTLP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from runspan.delivery import GRPC, HTTP
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.otel import push_metrics
from runspan.telemetry.prometheus import serve_metrics

_LOOPBACK: Final = "127.0.0.1"


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


def metrics_option(command: F) -> F:
    """``--metrics-listen [HOST:]PORT``."""
    return option(
        "--metrics-listen",
        type=Address(),
        metavar="[HOST:]PORT",
        show_default="answer no scrapes",
        help="Answer Prometheus at /metrics there; a port alone is on this machine only, port 0 takes a free one.",
    )(command)


@contextmanager
def export_metrics(
    health: MetricsRegistry, listen: tuple[str, int] | None, *, service_name: str, quiet: bool
) -> Iterator[None]:
    """Shows the health while the block runs: at an address, and over OTLP if the environment asks for it."""
    with ExitStack() as shown:
        if listen is not None:
            url = shown.enter_context(serve_metrics(health, *listen))
            if not quiet:
                click.echo(f"runspan: metrics at {url}", err=True)
        shown.enter_context(push_metrics(health, os.environ, service_name=service_name))
        yield


F = TypeVar("F", bound=Callable[..., Any])

SECOND: Final = 1_000_000_000
UNITS: Final = {"m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
PLANS: Final = {"free": 7.0, "pro": 30.0, "enterprise": 90.0}
"""The platform's retention plans in days."""
STUCK_SECONDS: Final = 900
"""How long nobody may see a run go on before it counts as stuck, unless told otherwise: several heartbeats."""


def option(*names: str, env: str | Sequence[str] = "", **attributes: Any) -> Callable[[F], F]:
    """An option with its environment variable, ``RUNSPAN_MAX_BODY`` for ``--max-body``; its help shows both.

    env: other variables in place of that one, the first that is set counts.
    """
    flag = next(name for name in names if name.startswith("--"))
    variable = env or "RUNSPAN_" + flag[2:].replace("-", "_").upper()
    attributes.setdefault("show_default", True)
    return click.option(*names, envvar=variable, show_envvar=True, **attributes)


class Utf8Text(click.ParamType[str]):
    """Text that can be sent and stored; a shell hands over any bytes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"expected UTF-8, got {value!r}", param, ctx)
        return text


class Duration(click.ParamType[int]):
    """A length of time such as ``90m``, ``24h`` or ``30d``; nanoseconds. longest: in days."""

    name = "time"

    def __init__(self, longest: int | None = None) -> None:
        self._longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,6})([mhd])", str(value))
        if match is None:
            self.fail(f"expected a length of time such as 90m, 24h or 30d, got {value!r}", param, ctx)
        length = int(match[1]) * UNITS[match[2]]
        if self._longest is not None and length > self._longest * UNITS["d"]:
            self.fail(f"expected at most {self._longest}d, got {value!r}", param, ctx)
        return length


class Seconds(click.ParamType[float]):
    """A length of time such as ``60s``, ``5m`` or ``30d``, in seconds; a number alone is seconds too."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"expected a length of time such as 60s, 5m or 30d, got {value!r}", param, ctx)
        return float(match[1]) * UNITS.get(match[2], SECOND) / SECOND


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


def data_option(command: F) -> F:
    """``--data DIR``: where the embedded store and the keys are."""
    return option(
        "--data", metavar="DIR", default="runspan-data", help="Directory of the embedded store and of the API keys."
    )(command)


def reading_options(command: F) -> F:
    """Where runs are read from, and whose: ``--data``, ``--backend``, ``--tenant``, ``--api-key-file``."""
    backend = option(
        "--backend",
        metavar="URL",
        show_default="the store in --data",
        help="Where the runs are: sqlite:DIR, tempo+http://HOST:PORT, jaeger+http://HOST:PORT, or http://HOST:PORT of "
        "a running runspan server.",
    )
    return data_option(backend(tenant_option(api_key_option(command))))


def receiver_options(command: F) -> F:
    """Where traces go: ``--endpoint`` and ``--protocol``."""
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
        help="How the receiver takes traces.",
    )
    return endpoint(protocol(command))


def service_name_option(command: F) -> F:
    """``--service-name``: who sends."""
    return option(
        "--service-name",
        type=Utf8Text(),
        metavar="NAME",
        env=("RUNSPAN_SERVICE_NAME", "OTEL_SERVICE_NAME"),
        default="runspan",
        help="The traces' service.name; OTEL_RESOURCE_ATTRIBUTES adds to it.",
    )(command)


def replay_option(command: F) -> F:
    """``--replay``: what is sent is no news."""
    return option(
        "--replay",
        is_flag=True,
        help="What is sent is no news: a Collector passes it on and does not count it in metrics and alerts (the "
        "header x-runspan-replay).",
    )(command)


def tenant_option(command: F) -> F:
    """``--tenant NAME``: whose runs."""
    return option(
        "--tenant",
        type=Utf8Text(),
        metavar="NAME",
        default="",
        show_default="runs without a company",
        help="Company that the runs belong to. A server with API keys takes only the key's own company.",
    )(command)


def api_key_option(command: F) -> F:
    """``--api-key-file FILE``: a key never stands on the command line, where every process could read it."""
    return option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        show_default="the key in RUNSPAN_API_KEY, if any",
        help="File that holds the API key for a runspan server.",
    )(command)


def json_option(command: F) -> F:
    """``--json``: for scripts."""
    return option("--json", "as_json", is_flag=True, help="Print JSON on standard output, for scripts.")(command)


def port_option(command: F) -> F:
    """``--port``: where a server listens."""
    return option("--port", default=8321, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")(
        command
    )
