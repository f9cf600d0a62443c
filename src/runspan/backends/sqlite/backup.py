"""Copy a store and other files of its directory into one file while they are used, and put them back.

A backup is an SQLite file: the tables of the store, and a table with the other files. Its application id is not the
store's, so it cannot be opened in the place of a store by mistake.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from runspan.backends.sqlite.compression import Compression
from runspan.backends.sqlite.integrity import Damage, copy_sound_rows, count_rows, find_damage
from runspan.backends.sqlite.reserve import Reserve
from runspan.backends.sqlite.schema import BACKUP_ID, FILE_NAME, SCHEMA, open_writer, use_directory
from runspan.backends.sqlite.store import SqliteStore
from runspan.backends.sqlite.wal import MARK_COMMIT, application_id
from runspan.errors import ConfigError, StoreError
from runspan.storage.data_directory import INDEX_FILE, exclusive_use, is_own_file, lock_files, replacement
from runspan.storage.sqlite_file import READ_ERRORS, integrity_faults, open_read_only, translate_errors
from runspan.system import drop_cached_pages, sync_path, try_lock

_PAGES_AT_ONCE: Final = 500
_NAMED: Final = 3
_PARTIAL: Final = ".partial"
_FILES_TABLE: Final = "CREATE TABLE backup_files (name TEXT PRIMARY KEY, content BLOB NOT NULL, digest BLOB NOT NULL)"
_TEMPORARY_PRAGMAS: Final = ("journal_mode = OFF", "synchronous = OFF")
"""For a file that is written to the disk as a whole before anything relies on it."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is: ``copying`` in bytes, ``verifying`` in rows."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup contains."""

    runs: int
    files: tuple[str, ...]
    """The names of the other files."""
    bytes: int
    replaced: Path | None = None
    """The folder with the files that a restore has replaced."""
    resumed: bool = False
    """Whether the same restore was interrupted before, and only its last steps were left."""


def write_backup(
    directory: Path, names: Sequence[str], target: Path, *, overwrite: bool, on_progress: OnProgress
) -> BackupReport:
    """Write the state that a store has now to a file, verify it, and give it its name.

    A directory without a store is backed up as one with an empty store, and stays as it is.

    names: Other SQLite files of the directory that the backup includes. Those that do not exist are left out.
    Raise StoreError when the store or one of the files is damaged, ConfigError when the target cannot be used.
    """
    if target.exists() and not overwrite:
        hint = "choose another name, or replace it with --overwrite"
        raise ConfigError("the file exists", where=str(target), hint=hint)
    if target.resolve().parent == directory.resolve():
        hint = "what is in the directory is lost with it"
        raise ConfigError(where=str(target), expected=f"a file outside of {directory}", got="one in it", hint=hint)
    partial = target.with_name(f"{target.name}{_PARTIAL}")
    path = directory / FILE_NAME
    has_store = path.exists() or path.with_name(f"{FILE_NAME}-wal").exists()
    # An open store is not replaced, and the last to close it removes its write-ahead log.
    use = SqliteStore(directory) if has_store else use_directory(path)
    with closing(use), translate_errors(target), _locked(partial):
        try:
            if has_store:
                _copy(path, partial, on_progress)
            else:
                open_writer(partial).close()
            found = [name for name in names if (directory / name).exists()]
            _make_backup(partial, {name: _content(directory / name) for name in found})
            sync_path(partial)
            _forget_cached(partial)
            runs = _verify(
                partial, "the store", "find the damage with `runspan check`; the backup was not written", on_progress
            )
            if target.exists() and not overwrite:
                raise ConfigError("the file exists", where=str(target), hint="choose another name")
            partial.rename(target)
            sync_path(target.parent)
        except BaseException:
            _remove_partial(partial)
            raise
    return BackupReport(runs, tuple(found), target.stat().st_size)


def restore_backup(source: Path, directory: Path, *, overwrite: bool, on_progress: OnProgress) -> BackupReport:
    """Put a backup into a data directory, as a whole, after it was verified.

    overwrite: Allow that the directory has files. Those of runspan are moved into a folder in it.
    Raise StoreError when the backup is damaged or the directory in use, ConfigError when it is not empty.
    """
    marker = _require_backup(source)
    with translate_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / FILE_NAME
    with exclusive_use(directory) as finished:
        if finished and _previous_marker(path) == marker:
            return _report(path, replaced=max(directory.glob("replaced-*"), default=None), resumed=True)
        if not overwrite and (files := _files_in(directory)):
            raise ConfigError(
                "the directory is not empty",
                where=str(directory),
                got=", ".join(files[:_NAMED]),
                hint="name another one, or move its store, keys and sessions into a subfolder with --overwrite",
            )
        Reserve(path).delete()
        before = set(directory.glob("replaced-*"))
        with replacement(directory) as staging:
            copy = staging / FILE_NAME
            with translate_errors(staging):
                _copy(source, copy, on_progress)
                for name, content in _read_files(copy).items():
                    _write_file(staging / name, content)
                _make_store(copy, marker)
                sync_path(copy)
                _forget_cached(copy)
            _verify(copy, f"the backup {source}", "use another backup; nothing was replaced", on_progress)
            for name in (file.name for file in staging.iterdir() if file != copy):
                if faults := integrity_faults(staging / name):
                    raise StoreError(f"{name} in the backup is damaged", where=str(source), got=faults[0])
        return _report(path, replaced=next(iter(set(directory.glob("replaced-*")) - before), None))


def rebuild_store(directory: Path, keep: Callable[[bytes], None], on_progress: Callable[[int], None]) -> int:
    """Replace a store whose file is damaged by one with everything of it that can be read and is sound.

    The damaged file is moved into a folder of the directory. Return how many rows were copied.
    keep: Called with each row that is not copied, as a line of JSON.
    Raise StoreError when the directory is in use.
    """
    with exclusive_use(directory), replacement(directory) as staging:
        path = directory / FILE_NAME
        Reserve(path).delete()
        with translate_errors(path):
            for file in directory.iterdir():
                if is_own_file(file.name) and not file.name.startswith((FILE_NAME, INDEX_FILE)):
                    shutil.copy(file, staging)
            with closing(open_read_only(path)) as source, closing(open_writer(staging / FILE_NAME)) as target:
                compression = Compression()
                with suppress(*READ_ERRORS):
                    compression.load(source)
                return copy_sound_rows(source, target, compression, keep, on_progress)


def _report(path: Path, *, replaced: Path | None, resumed: bool = False) -> BackupReport:
    with closing(open_read_only(path)) as connection:
        (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    files = sorted(file.name for file in path.parent.glob("*.sqlite3") if is_own_file(file.name) and file != path)
    return BackupReport(runs, tuple(files), path.stat().st_size, replaced, resumed)


def _copy(source: Path, target: Path, on_progress: OnProgress) -> None:
    """Copy one state of a database, page by page, while others write to it."""
    with closing(open_read_only(source)) as reader, closing(_connect(target)) as writer:
        # While the transaction lasts, the state that is copied stays the same, however much is written.
        reader.execute("BEGIN")
        page_bytes = int(reader.execute("PRAGMA page_size").fetchone()[0])
        reader.execute("SELECT 1 FROM sqlite_schema").fetchone()

        def progress(_: int, remaining: int, total: int) -> None:
            on_progress("copying", (total - remaining) * page_bytes, total * page_bytes)

        reader.backup(writer, pages=_PAGES_AT_ONCE, progress=progress)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file for exclusive use. It is synced to disk as a whole later."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in _TEMPORARY_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _change(path: Path, *statements: tuple[str, Sequence[object]]) -> None:
    with closing(_connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # the copy of a file with a write-ahead log wants one too
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN")
        for statement, values in statements:
            connection.execute(statement, values)
        connection.execute("COMMIT")


def _make_backup(path: Path, files: Mapping[str, bytes]) -> None:
    insert = "INSERT INTO backup_files VALUES (?, ?, ?)"
    rows: list[tuple[str, Sequence[object]]] = [
        (insert, (name, content, sha256(content).digest())) for name, content in files.items()
    ]
    # With a marker of its own, no write-ahead log fits the file.
    _change(path, (_FILES_TABLE, ()), *rows, (MARK_COMMIT, ()), (f"PRAGMA application_id = {BACKUP_ID}", ()))


def _make_store(path: Path, marker: bytes) -> None:
    statement = "UPDATE last_commit SET previous = ?, marker = randomblob(16)"
    application = f"PRAGMA application_id = {SCHEMA.application_id}"
    _change(path, ("DROP TABLE backup_files", ()), (statement, (marker,)), (application, ()))


def _content(path: Path) -> bytes:
    """Return a consistent copy of a small SQLite file. Raise StoreError when it is damaged."""
    if faults := integrity_faults(path):
        hint = "`runspan check` says what to do; the backup was not written"
        raise StoreError("the file is damaged", where=str(path), got=faults[0], hint=hint)
    with closing(open_read_only(path)) as connection:
        return connection.serialize()


def _read_files(path: Path) -> dict[str, bytes]:
    """Return the other files in a backup. Raise StoreError when one is damaged."""
    with closing(_connect(path)) as connection:
        rows = connection.execute("SELECT name, content, digest FROM backup_files").fetchall()
    for name, content, digest in rows:
        if not is_own_file(name) or name == FILE_NAME or "/" in name or sha256(content).digest() != digest:
            raise StoreError("a file in the backup is damaged", where=str(path), got=ascii(name))
    return {name: content for name, content, _ in rows}


def _write_file(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _verify(path: Path, what: str, hint: str, on_progress: OnProgress) -> int:
    """Return how many runs a file has. Raise StoreError when anything in it is damaged."""
    damages: list[Damage] = []
    count = rows = 0
    uri = f"{path.absolute().as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        compression = Compression()
        with suppress(*READ_ERRORS):
            compression.load(connection)
        total = count_rows(connection)

        def advance(more: int) -> None:
            nonlocal rows
            rows += more
            if rows % 500 == 0:
                on_progress("verifying", rows, total)

        for damage in find_damage(connection, compression, advance):
            count += 1
            damages += [damage] if len(damages) < _NAMED else []
        if not count:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    got = "; ".join(map(str, damages))
    places = "1 place" if count == 1 else f"{count:,} places"
    raise StoreError(f"{what} is damaged in {places}", where=str(path), got=got, hint=hint)


def _require_backup(source: Path) -> bytes:
    """Return the marker of a backup. Raise ConfigError or StoreError when it is none."""
    try:
        found = application_id(source)
    except OSError as error:
        raise ConfigError(
            where=str(source), expected="a file that `runspan backup` has written", got=str(error)
        ) from None
    if found != BACKUP_ID:
        got = "the database of a store" if found == SCHEMA.application_id else "another file"
        hint = "a copy of a store that was stopped is a data directory: use it with --data"
        raise ConfigError(where=str(source), expected="a file that `runspan backup` has written", got=got, hint=hint)
    with translate_errors(source), closing(open_read_only(source)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA.version:
            raise StoreError(
                "the backup was written by another version of runspan",
                where=str(source),
                expected=f"format {SCHEMA.version}",
                got=f"format {version}",
                hint="restore it with that version",
            )
        marker: bytes = connection.execute("SELECT marker FROM last_commit").fetchone()[0]
        return marker


def _previous_marker(path: Path) -> bytes | None:
    with suppress(*READ_ERRORS), closing(open_read_only(path)) as connection:
        previous: bytes = connection.execute("SELECT previous FROM last_commit").fetchone()[0]
        return previous
    return None


def _files_in(directory: Path) -> list[str]:
    return sorted(
        {file.name for file in directory.iterdir()} - {*lock_files(), Reserve(directory / FILE_NAME).path.name}
    )


def _forget_cached(path: Path) -> None:
    """Make the next read of a file read it from the disk, where the system can."""
    with path.open("rb") as file:
        drop_cached_pages(file.fileno())


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Create an empty file that no other process writes. One that a killed process has left is emptied."""
    while True:
        descriptor = os.open(partial, os.O_CREAT | os.O_RDWR, 0o600)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise StoreError("another process is writing this backup", where=str(partial), hint="wait for it")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                break
        os.close(descriptor)  # another process has just finished with it
    try:
        os.ftruncate(descriptor, 0)
        for suffix in ("-journal", "-wal", "-shm"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _remove_partial(partial: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm", ""):
        with suppress(OSError):
            partial.with_name(partial.name + suffix).unlink()
