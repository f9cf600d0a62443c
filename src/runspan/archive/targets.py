"""Where an archive is written: a folder on a disk, durable and published by one rename, or a prefix of objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from runspan.errors import ConfigError, StoreError
from runspan.sources.archive import MANIFEST, MAX_MANIFEST, PROGRESS, UNFINISHED_SUFFIX
from runspan.sources.filesystem import ObjectPath, display_path, folders, is_url, list_files, path_inside, read_all
from runspan.system import drop_cached_pages, require_posix, sync_file, sync_path, try_lock

_LOCK: Final = ".runspan-archive.lock"


class LocalTarget:
    """A folder whose suffix says that it is unfinished. It is created with its first file, and renamed at the end."""

    def __init__(self, parent: str, name: str) -> None:
        self._finished = os.path.join(parent, name)
        self.path = self._finished + UNFINISHED_SUFFIX
        """Where it can be read now."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it. It is durable then, and no reader sees a part of it."""
        if not os.path.isdir(self.path):
            os.mkdir(self.path, mode=0o700)
            sync_path(os.path.dirname(self.path) or os.curdir)
        target = os.path.join(self.path, name)
        temporary = f"{target}.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            sync_file(file.fileno())
            # What is read back must come from the disk, not from the memory that it was written from.
            drop_cached_pages(file.fileno())
        os.replace(temporary, target)
        sync_path(self.path)

    def publish(self, manifest: bytes) -> None:
        """Make it a finished archive, in one step."""
        self.write(MANIFEST, manifest)
        os.rename(self.path, self._finished)
        sync_path(os.path.dirname(self._finished) or os.curdir)
        self.path = self._finished
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, PROGRESS))


class ObjectTarget:
    """A prefix of objects. It is an archive once the manifest is there, which is written last."""

    def __init__(self, parent: str, name: str) -> None:
        self.path = path_inside(parent, name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it. It is durable then, and no reader sees a part of it."""
        ObjectPath(path_inside(self.path, name)).write(content)

    def publish(self, manifest: bytes) -> None:
        """Make it a finished archive, in one step."""
        self.write(MANIFEST, manifest)
        ObjectPath(path_inside(self.path, PROGRESS)).remove()


ArchiveTarget = LocalTarget | ObjectTarget
"""The folder of one archive that is being written."""


def open_target(parent: str, name: str) -> ArchiveTarget:
    """Return the target of an archive in a folder or below a URL."""
    return ObjectTarget(parent, name) if is_url(parent) else LocalTarget(parent, name)


def target_name(parent: str, name: str) -> str:
    """Return the path of an unfinished archive, for people."""
    return display_path(path_inside(parent, name)) + ("" if is_url(parent) else UNFINISHED_SUFFIX)


def existing_names(parent: str) -> set[str]:
    """Return the names of the archives in a folder, finished and unfinished."""
    return {name.removesuffix(UNFINISHED_SUFFIX) for name in folders(parent)}


def unfinished(parent: str) -> dict[str, bytes]:
    """Return the unfinished archives in a folder: name → content of the file of progress."""
    found = {}
    for folder in folders(parent):
        name = folder.removesuffix(UNFINISHED_SUFFIX)
        path = path_inside(parent, folder)
        files = list_files(path) or {}
        if PROGRESS in files and (MANIFEST not in files or folder != name):
            found[name] = read_all(path_inside(path, PROGRESS), MAX_MANIFEST)
    return found


@contextmanager
def exclusive(parent: str) -> Iterator[None]:
    """Let one process at a time write archives into a folder. The system releases the lock of a killed process.

    An object store has no such lock: two commands at once write two archives at worst.
    """
    if is_url(parent):
        yield
        return
    require_posix("an archive in a folder", parent)
    os.makedirs(parent, exist_ok=True)
    lock = os.open(os.path.join(parent, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not try_lock(lock):
            raise ConfigError(
                where=parent,
                expected="a folder into which no other process archives now",
                got="another `runspan archive` that is running",
                hint="wait until it has finished, or name another folder",
            )
        yield
    finally:
        os.close(lock)


@contextmanager
def translate_os_errors(path: str) -> Iterator[None]:
    """Raise errors of the disk or the object store as StoreError with the path."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            "the archive cannot be written",
            where=display_path(path),
            got=error.strerror or str(error),
            hint="nothing was deleted; run the same command again once there is room and permission",
        ) from error
