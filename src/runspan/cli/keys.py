"""``runspan keys``: make, show, replace and end API keys."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Final

import click

from runspan.cli.errors import escape_control
from runspan.cli.options import Duration, Utf8Text, data_option, json_option, option
from runspan.cli.resources import create_key_store, open_key_store
from runspan.web.api_keys import PERMISSIONS, ApiKey

_LONGEST: Final = 36_500
"""Days of a key's life: a later end is as good as none, and no date."""


@click.group()
def keys() -> None:
    """API keys of a server, kept hashed in its data directory.

    A running server notices changes at once. The first key closes the server: from then on every request needs one,
    except for /healthz, /readyz, /metrics (unless serve --private-metrics) and /api/v1/openapi.json.

    \b
    Examples:
      runspan keys create --data ./data --name exporter --permission runs:write
      runspan keys list --data ./data
      runspan keys rotate --data ./data 1f2e3d4c --grace 24h
    """


@keys.command()
@data_option
@option("--name", type=Utf8Text(), required=True, env="RUNSPAN_KEY_NAME", help="What the key is for.")
@option(
    "--company",
    type=Utf8Text(),
    default="",
    show_default="runs without a company",
    help="Whose runs it reads and writes: the tenant of the runs, as in export --tenant.",
)
@option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice(PERMISSIONS),
    env="RUNSPAN_PERMISSIONS",
    show_default="both",
    help="May be given twice.",
)
@option(
    "--expires", type=Duration(_LONGEST), metavar="TIME", show_default="until revoked", help="Lifetime, such as 90d."
)
@json_option
def create(
    data: str, name: str, company: str, permissions: tuple[str, ...], expires: int | None, as_json: bool
) -> None:
    """Make a key and print it.

    It is shown this once; only its hash is kept.

    \b
    Examples:
      runspan keys create --data ./data --name grafana --permission runs:read
      (umask 077; runspan keys create --data ./data --name exporter >exporter.key)
    """
    ring = create_key_store(data)
    until = None if expires is None else time.time_ns() + expires
    secret, key = ring.create(name, tenant=company, permissions=permissions or PERMISSIONS, expires=until)
    ring.close()
    _show(secret, key, as_json)


@keys.command("list")
@data_option
@json_option
def list_keys(data: str, as_json: bool) -> None:
    """Show all keys ever made, without their secrets.

    \b
    Example:
      runspan keys list --data ./data --json
    """
    ring = open_key_store(data)
    found = ring.list()
    ring.close()
    for key in found:
        click.echo(json.dumps(_plain(key)) if as_json else _line(key))
    if not found:
        click.echo("no keys; make one with: runspan keys create --name NAME", err=True)


@keys.command()
@data_option
@click.argument("key_id", metavar="ID")
def revoke(data: str, key_id: str) -> None:
    """End a key at once.

    \b
    Example:
      runspan keys revoke --data ./data 1f2e3d4c
    """
    ring = open_key_store(data)
    key = ring.revoke(key_id)
    ring.close()
    click.echo(f"key {key.id} ({escape_control(key.name)}) is revoked", err=True)


@keys.command()
@data_option
@click.argument("key_id", metavar="ID")
@option(
    "--grace",
    type=Duration(_LONGEST),
    metavar="TIME",
    default="24h",
    help="How long the old key stays valid beside the new one.",
)
@json_option
def rotate(data: str, key_id: str, grace: int, as_json: bool) -> None:
    """Make a new key in place of an old one; both are valid for a while.

    \b
    Example:
      runspan keys rotate --data ./data 1f2e3d4c --grace 1h
    """
    ring = open_key_store(data)
    secret, key = ring.rotate(key_id, grace=grace)
    ring.close()
    _show(secret, key, as_json)


def _show(secret: str, key: ApiKey, as_json: bool) -> None:
    """The secret alone on standard output, so that it can be put into a file."""
    if as_json:
        click.echo(json.dumps({"key": secret, **_plain(key)}))
        return
    click.echo(secret)
    click.echo(
        f"key {key.id} ({escape_control(key.name)}): keep it now, it is not shown again; send it as header x-api-key",
        err=True,
    )


def _line(key: ApiKey) -> str:
    granted, company = ",".join(sorted(key.permissions)), escape_control(key.tenant) or "-"
    state = key.state(time.time_ns())
    return f"{key.id}  {state:8}  {granted:20}  {_iso(key.created)}  {company}  {escape_control(key.name)}"


def _plain(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "company": key.tenant,
        "permissions": sorted(key.permissions),
        "state": key.state(time.time_ns()),
        "created": _iso(key.created),
        "expires": _iso(key.expires),
        "revoked": _iso(key.revoked),
    }


def _iso(ns: int | None) -> str | None:
    return None if ns is None else datetime.fromtimestamp(ns // 1_000_000_000, UTC).isoformat(timespec="seconds")
