"""``imitate_windows``: what this package meets on Windows, in a process of its own that runs on Linux."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import signal
import socket
import sys
from types import ModuleType
from typing import Any

POSIX_MODULES = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
POSIX_NAMES: dict[ModuleType, str] = {
    os: """chown chroot ctermid fchdir fchmod fchown fork forkpty fpathconf fstatvfs getegid geteuid getgid getgrouplist
        getgroups getloadavg getpgid getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf mkfifo
        mknod nice openpty pathconf posix_fadvise posix_fallocate posix_spawn pread preadv pwrite pwritev readv
        register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile setgid setgroups setpgid setpriority
        setsid setuid statvfs sync sysconf tcgetpgrp ttyname uname wait wait3 wait4 waitid writev O_ASYNC O_CLOEXEC
        O_DIRECT O_DIRECTORY O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC O_TMPFILE""",
    signal: """SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP SIGTSTP SIGUSR1
        SIGUSR2 SIGWINCH SIGXFSZ alarm getitimer pause pthread_kill pthread_sigmask setitimer sigpending siginterrupt
        sigtimedwait sigwait""",
    socket: "AF_UNIX AF_NETLINK AF_PACKET SO_REUSEPORT recv_fds send_fds",
}
_BINARY = 0x8000
_FARTHEST = 1 << 40
"""Windows lets a file be at any position; on Linux some file systems end at 16 TiB."""


def imitate_windows(modules: list[str]) -> None:
    """Import modules anew without what Windows lacks; what they need of other packages stays as it was imported.

    Text files get carriage returns, a lock of ``msvcrt`` is one on a range of bytes, and no open file is removed.
    """
    for name in modules:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "runspan"]:
        del sys.modules[name]
    _imitate_files()
    for module, names in POSIX_NAMES.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    os.O_BINARY, signal.SIGBREAK = _BINARY, signal.SIGTERM  # type: ignore[attr-defined]
    sys.modules.update(dict.fromkeys(POSIX_MODULES))  # type: ignore[arg-type]
    sys.platform = "win32"
    for name in modules:
        importlib.import_module(name)


def _imitate_files() -> None:
    open_file, write, unlink, lock, seek = os.open, os.write, os.unlink, fcntl.lockf, os.lseek
    exclusive, unlocked = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
    text_files: set[int] = set()
    opened: set[int] = set()
    far: dict[int, int] = {}

    def imitated_open(path: Any, flags: int, *rest: int, **more: Any) -> int:
        file = open_file(path, flags & ~_BINARY, *rest, **more)
        opened.add(file)
        (text_files.discard if flags & _BINARY else text_files.add)(file)
        return file

    def imitated_write(file: int, data: bytes) -> int:
        if file in text_files:
            write(file, bytes(data).replace(b"\n", b"\r\n"))
            return len(data)
        return write(file, bytes(data)[:50])

    def imitated_unlink(path: Any, **more: Any) -> None:
        for file in opened:
            try:
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    raise PermissionError(errno.EACCES, "the file is open")
            except OSError as error:
                if error.errno == errno.EACCES:
                    raise
        unlink(path, **more)

    def imitated_lseek(file: int, position: int, whence: int) -> int:
        far.pop(file, None)
        if position > _FARTHEST:
            far[file] = position
            return position
        return seek(file, position, whence)

    def locking(file: int, mode: int, size: int) -> None:
        """Errors are those of the C runtime: EACCES for a byte that another process has locked."""
        position = far[file] if file in far else seek(file, 0, os.SEEK_CUR)
        try:
            lock(file, exclusive if mode == msvcrt.LK_NBLCK else unlocked, size, position)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "locked") from error

    os.open, os.write = imitated_open, imitated_write  # type: ignore[assignment]
    os.lseek, os.unlink = imitated_lseek, imitated_unlink  # type: ignore[assignment]
    msvcrt: Any = ModuleType("msvcrt")
    msvcrt.LK_NBLCK, msvcrt.LK_UNLCK, msvcrt.locking = 2, 0, locking
    sys.modules["msvcrt"] = msvcrt
