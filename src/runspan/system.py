"""What Linux, macOS and Windows do differently: locks, writing to the disk, open files, processes, users and signals.

Windows has what the library and its deliveries need. It has no lock that several processes share, it neither writes a
folder to the disk nor moves a file that is open, and its file modes keep no other user out. Whatever relies on one of
these calls ``require_posix`` first.
"""

from __future__ import annotations

import errno
import getpass
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from runspan.errors import ConfigError

if sys.platform == "win32":
    import msvcrt

    BINARY: Final = os.O_BINARY
    HANGUP: Final = signal.SIGBREAK
else:
    import fcntl
    import resource

    BINARY: Final = 0
    """The flag of ``os.open`` for a file whose line breaks stay as they are."""
    HANGUP: Final = signal.SIGHUP
    """The signal that the end of a terminal sends."""

_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
_LOCKED_BYTE: Final = 1 << 62
"""Where Windows locks a file: nobody can read or write a byte that is locked, so it is one that no file has."""
_LOCK_PAUSE: Final = 0.005
_M_ARENA_MAX: Final = -8
"""As in glibc's malloc.h."""
_OPEN_MAX: Final = 10_240
"""The open files that macOS allows every process, whatever the hard limit says."""


def require_posix(what: str, where: str) -> None:
    """Raise ConfigError on Windows. ``what`` cannot be used there, and ``where`` names the path or the option."""
    if sys.platform == "win32":
        raise ConfigError(
            f"{what} cannot be used on Windows, whose locks and disk writes do not keep what runspan promises",
            where=where,
            expected="Linux or macOS",
            got="Windows",
            hint="run this command there, or in the container; a program on Windows can send its runs to it",
        )


@contextmanager
def locked(file: int) -> Iterator[bool]:
    """Hold the lock of an open file against other processes. Yield False if its file system has no locks."""
    try:
        _lock(file)
        has_lock = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        has_lock = False
    try:
        yield has_lock
    finally:
        if has_lock:
            _unlock(file)


def try_lock(file: int) -> bool:
    """Take the lock of an open file, without waiting, until it is closed. Return False if another process has it."""
    try:
        if sys.platform == "win32":
            os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock_shared(file: int) -> None:
    """Take the lock of an open file, or turn the own one, into one that processes share. POSIX only."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_SH)
        return
    raise NotImplementedError


def sync_file(file: int) -> None:
    """Write an open file to the disk, and not only into the memory of the drive."""
    if sys.platform == "darwin":
        # fsync leaves it in the drive. Network file systems and some drives know no other.
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def sync_path(path: Path | str) -> None:
    """Write a file or a folder to the disk: of a folder, its names. POSIX only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def drop_cached_pages(file: int) -> None:
    """Make the next read of a file that was synced come from the disk, which only Linux can be asked for."""
    if sys.platform == "linux":
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def most_open_files() -> float:
    """Return how many files and connections this process may have open; infinity for no limit."""
    if sys.platform != "win32":
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft != resource.RLIM_INFINITY:
            return soft
    return math.inf


def allow_open_files(wanted: int) -> None:
    """Raise the limit of open files, which shells keep low for programs of another time, as far as is allowed."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        for limit in (most, min(most, _OPEN_MAX)):
            if soft == resource.RLIM_INFINITY or soft >= limit:
                return
            with suppress(OSError, ValueError):  # macOS has a limit of its own below the hard one
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return


def share_heaps() -> None:
    """Let the threads of this process share two heaps, as MALLOC_ARENA_MAX=2 does.

    glibc gives each thread a heap of its own, up to eight times the processors, and each keeps what the largest
    response made in it has needed. Elsewhere it does nothing.
    """
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  # takes milliseconds, and only a server needs it

        with suppress(OSError, AttributeError):  # no glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def can_fork() -> bool:
    """Return whether a forked process works: on Linux, before this one has a second thread.

    Another thread may hold a lock that its copy in the forked process never releases; libraries of macOS have threads.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def user_name() -> str:
    """Return the name of the user of this process, or its number if it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        if sys.platform != "win32":
            return str(os.getuid())
        return "unknown"


def _lock(file: int) -> None:
    if sys.platform == "win32":
        while True:
            os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
                return
            except PermissionError:  # another process has it; LK_LOCK would look once a second, and give up
                time.sleep(_LOCK_PAUSE)
    else:
        fcntl.flock(file, fcntl.LOCK_EX)


def _unlock(file: int) -> None:
    if sys.platform == "win32":
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def signals_blocked(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Let these signals wait meanwhile, also in processes that start. On Windows they do not wait."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
