"""Which server a test may use, and why there is none."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NoReturn

import pytest


@dataclass(frozen=True)
class Place:
    """Where a server comes from: urls that the environment names, a program, or a container image; one of them.

    urls: query API and OTLP/HTTP. how: the place in words, for the report of the test run.
    """

    name: str
    urls: tuple[str, str] | None = None
    program: str | None = None
    image: str | None = None

    @property
    def how(self) -> str:
        if self.urls is not None:
            return f"{self.name} at {self.urls[0]}"
        return f"the program {self.program}" if self.program else f"a container of {self.image}"


USED: Final[set[str]] = set()
"""Where the servers of this test run came from, for its report."""


@cache
def find(name: str, image: str, takes_otlp: bool = True) -> Place | str:
    """The first place that answers, else why there is none.

    ``RUNSPAN_TEST_TEMPO`` is the query API of a running server, ``RUNSPAN_TEST_TEMPO_OTLP`` where it takes OTLP/HTTP.
    ``RUNSPAN_TEST_OPENSEARCH`` stands alone, since runs are sent to a Jaeger in front of it.
    """
    variable = f"RUNSPAN_TEST_{name.upper()}"
    url, otlp = os.environ.get(variable), os.environ.get(f"{variable}_OTLP")
    if url and (otlp or not takes_otlp):
        return Place(name, urls=(url.rstrip("/"), (otlp or "").rstrip("/")))
    if url or otlp:
        return f"{variable} and {variable}_OTLP must both be set"
    program = shutil.which(name)
    if program:
        return Place(name, program=program)
    engine, reason = container_engine()
    if engine is not None:
        engine.close()
        return Place(name, image=image)
    return f"no {variable}, no program {name} on PATH, and no container engine: {reason}"


def require(name: str, image: str, *, takes_otlp: bool = True) -> Place:
    """The place; without one the test is skipped with the reason, or fails when ``RUNSPAN_REQUIRE`` names it."""
    place = find(name, image, takes_otlp)
    if not isinstance(place, Place):
        missing(name, place)
    USED.add(place.how)
    return place


def missing(name: str, reason: str) -> NoReturn:
    """Ends the test: there is no such server."""
    wanted = {item.strip() for item in os.environ.get("RUNSPAN_REQUIRE", "").split(",")}
    if name in wanted:
        pytest.fail(f"RUNSPAN_REQUIRE names {name}: {reason}")
    pytest.skip(f"needs {name}: {reason}")


def container_engine() -> tuple[Any, str]:
    """A client of the container engine, and without one the reason."""
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        return None, "the docker SDK is not installed"
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if host.startswith("unix://"):  # the SDK leaves a socket open when nobody listens
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(host.removeprefix("unix://"))
            except OSError as error:
                return None, f"{host}: {error.strerror}"
    try:
        client = docker.from_env(timeout=5)
    except DockerException as error:
        return None, _line(error)
    return client, ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
