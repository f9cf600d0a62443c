"""``runspan keys``: create, list, rotate and revoke API keys."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Final

import click

from runspan.cli import options
from runspan.cli.output import escape_control
from runspan.cli.state import StateOptions, state
from runspan.web.api_keys import PERMISSIONS, ApiKey

_LIFETIME: Final = options.Duration(longest_days=36_500)
"""A later end would not be a valid date."""


@click.group()
def keys() -> None:
    """Manage the API keys of a server, which are kept hashed in its data directory, or in the database of --state.

    Running servers notice changes at once. The first key closes the server: from then on every request needs a key,
    except for /healthz, /readyz, /metrics (unless serve --private-metrics) and /api/v1/openapi.json.

    \b
    Examples:
      runspan keys create --data ./data --name exporter --permission runs:write
      runspan keys list --data ./data
      runspan keys rotate --data ./data 1f2e3d4c --grace 24h
      runspan keys create --state postgresql://runspan@db/runspan --name people
    """


@keys.command()
@state
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
def create(
    state: StateOptions, name: str, tenant: str, permissions: tuple[str, ...], expires: int | None, as_json: bool
) -> None:
    """Create a key and print it.

    The key is shown only now, since the server keeps only its hash.

    \b
    Examples:
      runspan keys create --data ./data --name grafana --permission runs:read
      (umask 077; runspan keys create --data ./data --name exporter >exporter.key)
    """
    until = None if expires is None else time.time_ns() + expires
    with state.open_keys(create=True) as store:
        secret, key = store.create(name, tenant=tenant, permissions=permissions or PERMISSIONS, expires=until)
    _print_key(secret, key, as_json)


@keys.command("list")
@state
@options.as_json
def list_keys(state: StateOptions, as_json: bool) -> None:
    """List all keys, also expired and revoked ones, without their secrets.

    \b
    Example:
      runspan keys list --data ./data --json
    """
    with state.open_keys(create=False) as store:
        found = store.list()
    for key in found:
        click.echo(json.dumps(_to_dict(key)) if as_json else _line(key))
    if not found:
        click.echo("there are no keys; create one with: runspan keys create --name NAME", err=True)


@keys.command()
@state
@click.argument("key_id", type=options.Utf8Text(), metavar="ID")
def revoke(state: StateOptions, key_id: str) -> None:
    """Revoke a key at once.

    \b
    Example:
      runspan keys revoke --data ./data 1f2e3d4c
    """
    with state.open_keys(create=False) as store:
        key = store.revoke(key_id)
    click.echo(f"key {key.id} ({escape_control(key.name)}) is revoked", err=True)


@keys.command()
@state
@click.argument("key_id", type=options.Utf8Text(), metavar="ID")
@options.time("--grace", type=_LIFETIME, default="24h", help="How long the old key stays valid with the new one.")
@options.as_json
def rotate(state: StateOptions, key_id: str, grace: int, as_json: bool) -> None:
    """Replace a key with a new one; both are valid for a while.

    \b
    Example:
      runspan keys rotate --data ./data 1f2e3d4c --grace 1h
    """
    with state.open_keys(create=False) as store:
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
