"""Where an archive is written: a folder on a disk, made durable and published by one rename, or a prefix of objects."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from runspan.errors import ConfigError, StoreError
from runspan.sources.archive_manifest import MANIFEST, PROGRESS
from runspan.sources.archive_reader import UNFINISHED_SUFFIX
from runspan.sources.filesystem import ObjectStore, display_path, folders, is_url, join, list_files, read_all


class ArchiveTarget(Protocol):
    """The folder of one archive that is being written. A file that was written is durable.

    path: where it can be read now. name: where it will be once it is published, for people.
    """

    @property
    def path(self) -> str: ...

    @property
    def name(self) -> str: ...

    def write(self, name: str, content: bytes) -> None:
        """Puts a whole file there, in place of the one that may be there; never a part of it."""
        ...

    def publish(self, manifest: bytes) -> None:
        """Makes it a finished archive, in one step."""
        ...


class LocalTarget:
    """A folder with a suffix that says that it is not finished; renamed at the end."""

    def __init__(self, parent: str, name: str) -> None:
        self.name = os.path.join(parent, name)
        self.path = self.name + UNFINISHED_SUFFIX
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        _sync_folder(parent)

    def write(self, name: str, content: bytes) -> None:
        """See ``Place``."""
        target = os.path.join(self.path, name)
        temporary = f"{target}.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                # What is read back must come from the disk, not from the memory that it was written from.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(temporary, target)
        _sync_folder(self.path)

    def publish(self, manifest: bytes) -> None:
        """See ``Place``."""
        self.write(MANIFEST, manifest)
        os.rename(self.path, self.name)
        _sync_folder(os.path.dirname(self.name))
        self.path = self.name
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, PROGRESS))


class ObjectTarget:
    """A prefix of objects. It is an archive once the manifest is there, which is put last."""

    def __init__(self, parent: str, name: str) -> None:
        self.path = join(parent, name)
        self.name = display_path(self.path)
        self._objects = ObjectStore(parent)

    def write(self, name: str, content: bytes) -> None:
        """See ``Place``."""
        self._objects.write(join(self.path, name), content)

    def publish(self, manifest: bytes) -> None:
        """See ``Place``."""
        self.write(MANIFEST, manifest)
        self._objects.remove(join(self.path, PROGRESS))


def open_target(parent: str, name: str) -> ArchiveTarget:
    """The place of an archive in a folder or below a URL; made when it is not there."""
    return ObjectTarget(parent, name) if is_url(parent) else LocalTarget(parent, name)


def target_name(parent: str, name: str) -> str:
    """Where an unfinished archive is, for people."""
    return display_path(join(parent, name)) if is_url(parent) else os.path.join(parent, name) + UNFINISHED_SUFFIX


def existing_names(parent: str) -> set[str]:
    """The names of the archives in a folder, finished and not."""
    return {name.removesuffix(UNFINISHED_SUFFIX) for name in folders(parent)}


def unfinished(parent: str) -> dict[str, bytes]:
    """The archives in a folder that were not finished: name → what their file of progress says."""
    found = {}
    for folder in folders(parent):
        name = folder.removesuffix(UNFINISHED_SUFFIX)
        path = join(parent, folder)
        there = list_files(path) or {}
        if PROGRESS in there and (MANIFEST not in there or folder != name):
            found[name] = read_all(join(path, PROGRESS))
    return found


@contextmanager
def exclusive(parent: str) -> Iterator[None]:
    """One process writes archives into a folder at a time; the system lets go of the lock of one that was killed.

    An object store has no such lock: whoever runs the command there twice at once gets two archives at worst.
    """
    if is_url(parent):
        yield
        return
    os.makedirs(parent, exist_ok=True)
    lock = os.open(os.path.join(parent, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                where=parent,
                expected="a folder that nobody archives into now",
                got="another `runspan archive` that is running",
                hint="wait for its end, or name another folder",
            ) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def translate_os_errors(place: str) -> Iterator[None]:
    """What the disk or the object store will not do comes out as a StoreError with the place."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            "the archive cannot be written",
            where=display_path(place),
            got=error.strerror or str(error),
            hint="nothing was deleted; run the same command again once there is room and permission",
        ) from error


_LOCK = ".runspan-archive.lock"


def _sync_folder(path: str) -> None:
    folder = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
