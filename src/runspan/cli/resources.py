"""What commands open: data directories, key rings, backends to read from, and the API key of the environment."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from runspan.backends import connect
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.contracts import TraceReader
from runspan.delivery import with_api_key
from runspan.errors import SettingError, StoreError
from runspan.otlp.env import read_attributes
from runspan.otlp.protobuf_writer import Resource
from runspan.web.api_keys import ApiKeyStore

KEYS_FILE: Final = "keys.sqlite3"
_HTTP: Final = ("http://", "https://")
_KEY = re.compile(r"[\x21-\x7e]+")


def is_rest(backend: str | None) -> bool:
    """Whether a backend URL means another server's REST API."""
    return backend is not None and backend.lower().startswith(_HTTP)


def is_remote(backend: str) -> bool:
    """Whether a backend URL means a Tempo or a Jaeger, which are only read."""
    return "+" in backend.partition(":")[0]


def backend_name(backend: str) -> str:
    """A backend as strangers may hear of it: not where on this machine a directory is."""
    kind, _, url = backend.partition("+")
    return f"{kind.title()} at {url.rstrip('/')}" if is_remote(backend) else "the embedded store"


def directory(data: str) -> Path:
    """The data directory, made when it is not there; StoreError when that is not possible."""
    path = Path(data)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            "cannot make the data directory",
            where=data,
            got=error.strerror or str(error),
            hint="name another one with --data, or give this user the right to write there",
        ) from None
    return path


def create_key_store(data: str) -> ApiKeyStore:
    """The key ring of a data directory, made when it is not there. Warns when others on this machine can change it."""
    path = directory(data) / KEYS_FILE
    ring = ApiKeyStore(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        click.echo(f"runspan: {path} is open to other users (mode {mode:04o}); close it: chmod 600 {path}", err=True)
    return ring


def open_key_store(data: str) -> ApiKeyStore:
    """The key ring of a data directory that has one."""
    if not Path(data, KEYS_FILE).exists():
        raise SettingError(
            "no API keys are kept here",
            where=data,
            hint="name the server's directory with --data, or make a key: runspan keys create --data DIR --name NAME",
        )
    return create_key_store(data)


def api_key(file: Path | None, *, variable: str = "RUNSPAN_API_KEY", flag: str = "--api-key-file") -> str | None:
    """The key in the file, else in the variable. Errors tell where it stands, never what it is."""
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
                hint=f"check {flag} and {variable}_FILE",
            ) from None
    key = text.strip()
    if not key and file is None:
        return None
    if not _KEY.fullmatch(key):
        got = "other characters" if key else "an empty file"
        raise SettingError(where=where, expected="one API key in printable ASCII", got=got)
    return key


def otlp_environment(key_file: Path | None) -> dict[str, str]:
    """The process's environment, with the API key added to the headers that it names."""
    key = api_key(key_file)
    return dict(os.environ) if key is None else with_api_key(os.environ, key)


def resource_of(service_name: str) -> Resource:
    """Who sends, with what ``OTEL_RESOURCE_ATTRIBUTES`` adds."""
    attributes = read_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    attributes.pop("service.name", None)  # --service-name and OTEL_SERVICE_NAME go before it
    return Resource(service_name, attributes)


def open_reader(
    backend: str | None, data: str, key_file: Path | None, services: Sequence[str] | None = None
) -> TraceReader:
    """The reader of a backend URL, or of the embedded store in the data directory. Never makes a store.

    services: the names under which runs were sent, for backends that search by them; None: see ``connect``.
    """
    if backend is not None and is_rest(backend):
        return RunspanApiReader(backend, api_key=api_key(key_file))
    url = backend or f"sqlite:{data}"
    place = url.removeprefix("sqlite:")
    if place and place != url and not Path(place, FILE_NAME).exists():
        raise SettingError(
            "no runs are kept here",
            where=place,
            expected="a directory that `runspan serve` has written",
            hint="name it with --data, or a running server with --backend http://127.0.0.1:8321",
        )
    try:
        return connect(url, env=os.environ, services=services)
    except SettingError as error:
        if error.where == "backend" and error.hint.startswith("write "):
            error.hint = "write sqlite:DIR, or http://HOST:PORT of a running runspan server"
        raise
