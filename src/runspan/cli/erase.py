"""``runspan erase``: delete a tenant from an embedded store for good."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from runspan.backends.sqlite.erase import TenantContent, copies_in, erase_tenant, tenant_content
from runspan.cli import options
from runspan.cli.app import INCOMPLETE, handle_signals
from runspan.cli.check import require_store
from runspan.cli.output import escape_control, print_hint, progress_display
from runspan.cli.state import KEYS_FILE, StateOptions, create_key_store, state
from runspan.delivery.report import plural
from runspan.errors import ConfigError, QueryUnsupported
from runspan.web.api_keys import ApiKeyStore
from runspan.web.usage import USAGE_FILE, UsageStore

_ELSEWHERE: Final = {
    "tempo": "Tempo deletes whole blocks only: with a tenant of its own (RUNSPAN_BACKEND_TENANT with {tenant}) delete "
    "the folder of that tenant in its storage, else wait for block_retention",
    "jaeger": "Jaeger deletes by age only: wait for the ttl of its storage, or delete the spans with "
    "runspan.run.id of the tenant's runs in OpenSearch itself",
    "rest": "run it on the machine of that server, on its data directory",
}


@click.command()
@state
@options.option(
    "--backend",
    "backend_url",
    metavar="URL",
    show_default="the store in --data",
    help="Embedded store: sqlite:DIR. No other backend can erase a tenant: the error says what can be done there.",
)
@options.option(
    "--tenant", type=options.Utf8Text(), metavar="NAME", required=True, help="Tenant whose runs and spans are erased."
)
@options.option("--yes", is_flag=True, help="Erase. Without it, only print what would be erased.")
@options.option(
    "--copies",
    is_flag=True,
    help="Also delete what earlier commands have put aside in --data, of all tenants: replaced-… of a restore, "
    "set-aside-… of a check.",
)
@options.quiet
@options.as_json
@click.pass_context
def erase(
    ctx: click.Context,
    state: StateOptions,
    backend_url: str | None,
    tenant: str,
    yes: bool,
    copies: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Erase everything of one tenant from an embedded store.

    Its runs, its spans and what waits for others are deleted, and the database is written anew, without free pages and
    without the dictionary of its compression, which has parts of documents; so is the index. Then no file of the
    directory has any of it. Its API keys are revoked, also those of a server whose --data or --state is elsewhere, if
    that is named too; their names stay in the list of keys. Other tenants keep all they have.

    Stop the server first. It takes as long as to copy the data directory, and as much space in it and in the system's
    temporary directory. If it is interrupted, run it again.

    What is elsewhere is not erased: backups, archives, exported files, dead letters, a Collector's queue, logs, and
    free blocks and snapshots of the disk. Tempo and Jaeger cannot erase a tenant.

    \b
    Examples:
      runspan archive --before 0d --to /srv/acme --data ./data --tenant acme
      runspan erase --data ./data --tenant acme
      runspan erase --data ./data --tenant acme --yes

    The exit code is 0 if nothing of the tenant is left in the directory, and 1 if there are files put aside that may
    have some of it, or without --yes.
    """
    if backend_url is not None:
        kind = options.backend_kind(backend_url)
        if kind != "sqlite":
            raise QueryUnsupported(
                "this backend cannot erase a tenant",
                where="--backend",
                expected="an embedded store: sqlite:DIR",
                got=kind.title(),
                hint=_ELSEWHERE.get(kind, ""),
            )
    data = state.data if backend_url is None else backend_url.partition(":")[2]
    if not tenant:
        raise ConfigError(where="--tenant", expected="the name of a tenant", got="an empty one")
    directory = require_store(data)
    began = time.monotonic()
    revoked = 0
    if yes:
        with ExitStack() as stack:
            database = state.connect()  # before anything is gone
            if database is not None:
                stack.enter_context(closing(database))
            with handle_signals(), progress_display(quiet=quiet or as_json, unit="", line_every=30) as display:
                found = erase_tenant(
                    directory, tenant, lambda what, done, total: display.update(_progress(what, done, total))
                )
            if database is not None:
                revoked += _revoke_keys(ApiKeyStore(database), tenant)
                UsageStore(database).erase(tenant)
        for folder in _folders(ctx, state, directory):
            if (folder / KEYS_FILE).exists():
                with closing(create_key_store(str(folder))) as keys:
                    revoked += _revoke_keys(keys, tenant)
            if (folder / USAGE_FILE).exists():
                with closing(UsageStore(folder / USAGE_FILE)) as usage:
                    usage.erase(tenant)
    else:
        found = tenant_content(directory, tenant)
    left = copies_in(directory)
    if yes and copies:
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        left = []
    if as_json:
        click.echo(json.dumps(_json(data, tenant, found, revoked, left, erased=yes)))
    elif not quiet or left:
        verb = f"erased in {time.monotonic() - began:.1f} s" if yes else "would be erased"
        click.echo(escape_control(f"{data}: {_described(found)} of tenant {tenant} {verb}"), err=True)
        if revoked:
            click.echo(f"  {plural(revoked, 'API key')} revoked", err=True)
        for path in left:
            click.echo(escape_control(f"  {path} was put aside, and may have some of its runs"), err=True)
        if left:
            print_hint("--copies deletes what was put aside, of all tenants")
        if not yes:
            print_hint("stop the server, then add --yes")
    ctx.exit(INCOMPLETE if left or not yes else 0)


def _folders(ctx: click.Context, state: StateOptions, directory: Path) -> list[Path]:
    """Return where a server of the store may keep files: in its directory, and in --data if that is given."""
    if ctx.get_parameter_source("data") is ParameterSource.DEFAULT:
        return [directory]
    return list(dict.fromkeys((directory.resolve(), Path(state.data).resolve())))


def _revoke_keys(keys: ApiKeyStore, tenant: str) -> int:
    found = [key for key in keys.list() if key.tenant == tenant and key.revoked is None]
    for key in found:
        keys.revoke(key.id)
    return len(found)


def _progress(what: str, done: int, total: int) -> str:
    return f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}" if done else what


def _described(found: TenantContent) -> str:
    return (
        f"{plural(found.runs, 'run')}, {plural(found.foreign_spans, 'span')} of other instrumentation and "
        f"{plural(found.fragments, 'row')} of spans that wait"
    )


def _json(
    data: str, tenant: str, found: TenantContent, revoked: int, left: list[Path], *, erased: bool
) -> dict[str, object]:
    return {
        "data": data,
        "tenant": tenant,
        "erased": erased,
        "runs": found.runs,
        "foreignSpans": found.foreign_spans,
        "fragments": found.fragments,
        "revokedKeys": revoked,
        "putAside": list(map(str, left)),
    }
