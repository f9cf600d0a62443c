"""How a command that runs for long tells its health: ``--metrics-listen`` for Prometheus, the environment for OTLP."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import click

from runspan.cli.options import F, option
from runspan.health import Health
from runspan.health.otel import sending
from runspan.health.prometheus import serving

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
def reporting(health: Health, listen: tuple[str, int] | None, *, service_name: str, quiet: bool) -> Iterator[None]:
    """Shows the health while the block runs: at an address, and over OTLP if the environment asks for it."""
    with ExitStack() as shown:
        if listen is not None:
            url = shown.enter_context(serving(health, *listen))
            if not quiet:
                click.echo(f"runspan: metrics at {url}", err=True)
        shown.enter_context(sending(health, os.environ, service_name=service_name))
        yield
