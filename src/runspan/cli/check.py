"""``runspan check``: verify every row of a data directory, and mend what is damaged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import KW_ONLY, asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click

from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.backup import rebuild_store
from runspan.backends.sqlite.integrity import Damage
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.backends.sqlite.wal import set_log_aside
from runspan.cli import options
from runspan.cli.app import INCOMPLETE, handle_signals
from runspan.cli.output import ProgressDisplay, escape_control, print_error, print_hint, progress_display
from runspan.cli.state import KEYS_FILE
from runspan.delivery.report import plural
from runspan.errors import ConfigError, RunspanError, StoreError
from runspan.storage.data_directory import INDEX_FILE, SESSIONS_FILE, exclusive_use
from runspan.storage.sqlite_file import integrity_faults, translate_errors
from runspan.system import sync_file, sync_path
from runspan.web.api_keys import ApiKeyStore

_BATCH: Final = 200
_MAX_LISTED: Final = 10_000
"""Damaged rows that are remembered at once, and printed; mending continues with further ones."""


@dataclass
class _Result:
    """What a check found."""

    rows: int = 0
    count: int = 0
    damages: list[Damage] = field(default_factory=list)
    """The first ones."""
    other_files: list[tuple[str, str, str]] = field(default_factory=list)
    """File, what is damaged, and what to do."""

    @property
    def intact(self) -> bool:
        return not self.count and not self.other_files


@click.command()
@options.data
@options.option(
    "--repair",
    is_flag=True,
    help="Mend what can be made from sound data: build damaged indexes anew, and list items from their documents.",
)
@options.option(
    "--set-aside",
    is_flag=True,
    help="Move damaged rows, and a write-ahead log that does not belong to the database, into files "
    "set-aside-… in the directory. The runs can then be sent again. Nothing is deleted.",
)
@options.quiet
@options.as_json
@click.pass_context
def check(ctx: click.Context, data: str, repair: bool, set_aside: bool, quiet: bool, as_json: bool) -> None:
    """Verify everything in a data directory, also while a server uses it.

    SQLite checks its file and its indexes. Every document is decompressed and compared with its SHA-256, every list
    item with its checksum and its document, and every other span with its ids. The API keys, the sessions and the
    index are checked too. Damaged rows are named, with what to do. Without --repair and --set-aside nothing is changed.

    \b
    Examples:
      runspan check --data ./data
      runspan check --data ./data --repair --set-aside
      runspan check --data ./data --quiet || mail -s 'runspan store is damaged' ops

    The exit code is 0 if everything is sound, or was mended, 1 if damage is left, and 10 if the store cannot be opened.
    """
    directory = require_store(data)
    began = time.monotonic()
    hide = quiet or as_json
    mending = _Mending(directory, repair=repair, set_aside=set_aside, quiet=hide)
    with handle_signals():
        mending.move_log()
        with SqliteStore(directory) as store:
            first = last = _check(store, directory, quiet=hide)
            # What is mended may uncover more, and each pass remembers a bounded number of rows.
            while last.damages and mending.mend(store, last.damages):
                last = _check(store, directory, quiet=hide)
        if mending.rebuild(last.damages):
            with SqliteStore(directory) as store:
                last = _check(store, directory, quiet=hide)
    if as_json:
        click.echo(json.dumps(_json(data, first, last, mending)))
    elif not (quiet and first.intact and not mending.files):
        for line in _lines(data, first, last, mending, time.monotonic() - began):
            click.echo(escape_control(line), err=True)
        for hint in _hints(last, mending):
            print_hint(hint)
    ctx.exit(0 if last.intact else INCOMPLETE)


def require_store(data: str) -> Path:
    """Return the data directory. Raise ConfigError if there is no store in it."""
    directory = Path(data)
    if not (directory / FILE_NAME).exists() and not (directory / f"{FILE_NAME}-wal").exists():
        raise ConfigError(
            "no runs are kept here",
            where=data,
            expected="a directory that `runspan serve` has written",
            hint="name it with --data",
        )
    return directory


def _check(store: SqliteStore, directory: Path, *, quiet: bool) -> _Result:
    result = _Result(other_files=list(_other_files(directory)))
    with progress_display(quiet=quiet, unit="runs", total=store.count_rows, line_every=30) as display:
        display.update("checking the file", completed=0)

        def advance(rows: int) -> None:
            if rows:
                result.rows += rows
                if result.rows % _BATCH == 0:
                    _show(display, result)

        for damage in store.find_damage(advance):
            result.count += 1
            if len(result.damages) < _MAX_LISTED:
                result.damages.append(damage)
                if not quiet:
                    display.note(f"{damage}")
        result.other_files += [(INDEX_FILE, fault, _INDEX_HINT) for fault in store.index_faults()]
    return result


_INDEX_HINT: Final = f"delete {INDEX_FILE} in the directory: it is made again from the store"


def _show(display: ProgressDisplay, result: _Result) -> None:
    found = f"{result.count:,} damaged" if result.count else "no damage so far"
    display.update(found, completed=result.rows)


def _other_files(directory: Path) -> Iterator[tuple[str, str, str]]:
    """Yield what is damaged in the files of API keys and sessions."""
    keys, sessions = directory / KEYS_FILE, directory / SESSIONS_FILE
    if keys.exists():
        hint = "restore a backup, or move the file away and create the keys again with `runspan keys create`"
        faults = integrity_faults(keys)
        if not faults:
            try:
                with closing(ApiKeyStore(keys)) as store:
                    faults = list(store.find_damage())
            except RunspanError as error:
                faults = [str(error)]
        yield from ((KEYS_FILE, fault, hint) for fault in faults)
    if sessions.exists():
        hint = "move the file away while no server runs; people log in again"
        yield from ((SESSIONS_FILE, fault, hint) for fault in integrity_faults(sessions))


@dataclass
class _Mending:
    """Mends damage as far as the options allow."""

    directory: Path
    _: KW_ONLY
    repair: bool
    set_aside: bool
    quiet: bool
    repaired: int = 0
    moved: int = 0
    rebuilt: int | None = None
    """How many rows a new file has; None without one."""
    files: list[Path] = field(default_factory=list)
    """What was set aside."""

    def __post_init__(self) -> None:
        self._aside = self.directory / f"set-aside-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self._is_readable = True

    def move_log(self) -> None:
        """Move a log that must not be applied away, unless the store is open: the first to open it has checked it."""
        target = self._aside.with_name(f"{self._aside.name}-wal")
        if not self.set_aside:
            return
        with suppress(StoreError), exclusive_use(self.directory):
            error = set_log_aside(self.directory / FILE_NAME, target)
            if error is not None:
                self.files.append(target)
                error.hint = f"it was moved to {target}"
                if not self.quiet:
                    print_error(error)

    def mend(self, store: SqliteStore, damages: Sequence[Damage]) -> bool:
        """Repair and move rows; return whether anything was mended."""
        before = (self.repaired, self.moved)
        try:
            # Rows can be moved only while their indexes are sound.
            for damage in damages:
                if damage.remedy == "repair" and (self.repair or (self.set_aside and damage.row is None)):
                    self.repaired += store.repair(damage)
            rows = [damage for damage in damages if damage.remedy == "set aside"] if self._may_move(damages) else []
            for start in range(0, len(rows), _BATCH):
                self.moved += store.take_out(rows[start : start + _BATCH], self._keep)
        except StoreError:
            self._is_readable = False  # a page that must be changed is damaged
            return False
        return before != (self.repaired, self.moved)

    def rebuild(self, damages: Sequence[Damage]) -> bool:
        """Copy what can be read into a new file if pages of the file are damaged; return whether that was done."""
        needed = not self._is_readable or any(damage.remedy == "rebuild" for damage in damages)
        if not needed or not self._may_move(damages):
            return False
        with progress_display(quiet=self.quiet, unit="runs") as display:
            self.rebuilt = rebuild_store(self.directory, lambda line: self._keep([line]), display.advance)
        return True

    def _may_move(self, damages: Sequence[Damage]) -> bool:
        """Return whether rows may be moved: not while sound ones look damaged, since their dictionary is."""
        return self.set_aside and not any(damage.table == "dictionaries" for damage in damages)

    def _keep(self, lines: list[bytes]) -> None:
        """Append lines to the file of rows that were set aside, and write them to the disk."""
        file = self._aside.with_name(f"{self._aside.name}.ndjson")
        with translate_errors(file):
            with open(file, "ab", opener=partial(os.open, mode=0o600)) as output:
                output.writelines(lines)
                output.flush()
                sync_file(output.fileno())
            sync_path(file.parent)
        if file not in self.files:
            self.files.append(file)


def _lines(data: str, first: _Result, last: _Result, mending: _Mending, seconds: float) -> Iterator[str]:
    for name, what, _ in last.other_files:
        yield f"{data}: {name}: {what}"
    count = first.count + len(first.other_files)
    state = f"DAMAGED in {plural(count, 'place')}" if count else "everything is sound"
    yield f"{data}: {plural(first.rows, 'row')} checked in {seconds:.1f} s: {state}"
    if mending.repaired:
        yield f"  repaired: {mending.repaired:,}"
    if mending.moved:
        yield f"  set aside: {plural(mending.moved, 'row')}"
    if mending.rebuilt is not None:
        yield f"  copied into a new file: {plural(mending.rebuilt, 'row')}; the damaged one is in a folder replaced-…"
    for file in mending.files:
        yield f"  in {file}"
    if mending.repaired or mending.moved or mending.rebuilt is not None:
        left = last.count + len(last.other_files)
        yield f"  still damaged: {plural(left, 'place')}" if left else "  everything else is sound"


def _hints(last: _Result, mending: _Mending) -> Iterator[str]:
    remedies = {damage.remedy for damage in last.damages}
    if "repair" in remedies and not mending.repair:
        yield "--repair builds indexes anew, and list items from their documents"
    if "set aside" in remedies and not mending.set_aside:
        yield "--set-aside moves damaged rows into a file; then send their runs again, from the platform or an archive"
    if "rebuild" in remedies and not mending.set_aside:
        yield "pages of the file are damaged: check the disk; then restore a backup, or stop the server and --set-aside"
    if "restore" in remedies:
        yield "restore a backup with `runspan restore`, and check the disk"
    if mending.moved or mending.rebuilt is not None:
        yield "send the runs that were set aside again: `runspan export FILE`, or `runspan sync --resend`"
    yield from dict.fromkeys(hint for _, _, hint in last.other_files)


def _damage_json(damage: Damage) -> dict[str, object]:
    members = asdict(damage)
    return {"run": members.pop("run_id")} | members


def _json(data: str, first: _Result, last: _Result, mending: _Mending) -> dict[str, object]:
    return {
        "data": data,
        "intact": last.intact,
        "rows": first.rows,
        "damaged": first.count + len(first.other_files),
        "damages": list(map(_damage_json, first.damages)),
        "otherFiles": [{"file": name, "what": what} for name, what, _ in first.other_files],
        "repaired": mending.repaired,
        "setAside": mending.moved,
        "rebuilt": mending.rebuilt,
        "files": [str(file) for file in mending.files],
        "left": last.count + len(last.other_files),
    }
