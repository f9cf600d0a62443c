"""``runspan keys``: create, list, rotate and revoke API keys."""

from __future__ import annotations

import json
import stat
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from runspan.cli import options
from runspan.cli.output import escape_control
from runspan.errors import ConfigError, StoreError
from runspan.web.api_keys import PERMISSIONS, ApiKey, ApiKeyStore

KEYS_FILE: Final = "keys.sqlite3"
_LIFETIME: Final = options.Duration(longest_days=36_500)
"""A later end would not be a valid date."""


def create_key_store(data: str) -> ApiKeyStore:
    """Open the key store of a data directory, and create both if they do not exist.

    A warning is printed if other users of this machine can read or change the file. StoreError if the directory cannot
    be created.
    """
    path = Path(data, KEYS_FILE)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            "cannot create the data directory",
            where=data,
            got=error.strerror or str(error),
            hint="name another one with --data, or allow this user to write there",
        ) from None
    store = ApiKeyStore(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        click.echo(f"runspan: {path} is open to other users (mode {mode:04o}); close it: chmod 600 {path}", err=True)
    return store


def open_key_store(data: str) -> ApiKeyStore:
    """Open the key store of a data directory that has one."""
    if not Path(data, KEYS_FILE).exists():
        raise ConfigError(
            "no API keys are kept here",
            where=data,
            hint="name the server's directory with --data, or create a key: runspan keys create --data DIR --name NAME",
        )
    return create_key_store(data)


@click.group()
def keys() -> None:
    """Manage the API keys of a server, which are kept hashed in its data directory.

    A running server notices changes at once. The first key closes the server: from then on every request needs a key,
    except for /healthz, /readyz, /metrics (unless serve --private-metrics) and /api/v1/openapi.json.

    \b
    Examples:
      runspan keys create --data ./data --name exporter --permission runs:write
      runspan keys list --data ./data
      runspan keys rotate --data ./data 1f2e3d4c --grace 24h
    """


@keys.command()
@options.data
@options.option(
    "--name", type=options.Utf8Text(), required=True, env="RUNSPAN_KEY_NAME", help="What the key is used for."
)
@options.option(
    "--tenant",
    type=options.Utf8Text(),
    metavar="NAME",
    default="",
    show_default="runs without a tenant",
    help="Tenant whose runs the key reads and writes, as in export --tenant.",
)
@options.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice(PERMISSIONS),
    env="RUNSPAN_PERMISSIONS",
    show_default="both",
    help="Permission of the key. The option may be repeated.",
)
@options.time("--expires", type=_LIFETIME, show_default="until revoked", help="Lifetime, such as 90d.")
@options.as_json
def create(data: str, name: str, tenant: str, permissions: tuple[str, ...], expires: int | None, as_json: bool) -> None:
    """Create a key and print it.

    The key is shown only now, since the server keeps only its hash.

    \b
    Examples:
      runspan keys create --data ./data --name grafana --permission runs:read
      (umask 077; runspan keys create --data ./data --name exporter >exporter.key)
    """
    until = None if expires is None else time.time_ns() + expires
    with closing(create_key_store(data)) as store:
        secret, key = store.create(name, tenant=tenant, permissions=permissions or PERMISSIONS, expires=until)
    _print_key(secret, key, as_json)


@keys.command("list")
@options.data
@options.as_json
def list_keys(data: str, as_json: bool) -> None:
    """List all keys, also expired and revoked ones, without their secrets.

    \b
    Example:
      runspan keys list --data ./data --json
    """
    with closing(open_key_store(data)) as store:
        found = store.list()
    for key in found:
        click.echo(json.dumps(_to_dict(key)) if as_json else _line(key))
    if not found:
        click.echo("there are no keys; create one with: runspan keys create --name NAME", err=True)


@keys.command()
@options.data
@click.argument("key_id", type=options.Utf8Text(), metavar="ID")
def revoke(data: str, key_id: str) -> None:
    """Revoke a key at once.

    \b
    Example:
      runspan keys revoke --data ./data 1f2e3d4c
    """
    with closing(open_key_store(data)) as store:
        key = store.revoke(key_id)
    click.echo(f"key {key.id} ({escape_control(key.name)}) is revoked", err=True)


@keys.command()
@options.data
@click.argument("key_id", type=options.Utf8Text(), metavar="ID")
@options.time("--grace", type=_LIFETIME, default="24h", help="How long the old key stays valid with the new one.")
@options.as_json
def rotate(data: str, key_id: str, grace: int, as_json: bool) -> None:
    """Replace a key with a new one; both are valid for a while.

    \b
    Example:
      runspan keys rotate --data ./data 1f2e3d4c --grace 1h
    """
    with closing(open_key_store(data)) as store:
        secret, key = store.rotate(key_id, grace=grace)
    _print_key(secret, key, as_json)


def _print_key(secret: str, key: ApiKey, as_json: bool) -> None:
    """Print the secret alone on standard output, so that it can be redirected into a file."""
    if as_json:
        click.echo(json.dumps({"key": secret, **_to_dict(key)}))
        return
    click.echo(secret)
    click.echo(
        f"key {key.id} ({escape_control(key.name)}): keep it now, it is not shown again; send it as header x-api-key",
        err=True,
    )


def _line(key: ApiKey) -> str:
    permissions, tenant = ",".join(sorted(key.permissions)), escape_control(key.tenant) or "-"
    state = key.state(time.time_ns())
    return f"{key.id}  {state:8}  {permissions:20}  {_iso(key.created)}  {tenant}  {escape_control(key.name)}"


def _to_dict(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "permissions": sorted(key.permissions),
        "state": key.state(time.time_ns()),
        "created": _iso(key.created),
        "expires": _iso(key.expires),
        "revoked": _iso(key.revoked),
    }


def _iso(ns: int | None) -> str | None:
    return None if ns is None else datetime.fromtimestamp(ns // 1_000_000_000, UTC).isoformat(timespec="seconds")
