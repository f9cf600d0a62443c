"""``Workers``: threads that do one job after another, and hand what comes of it to whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class Workers:
    """Daemon threads: a program that ends does not wait for an answer that may take minutes.

    failed: told of an exception that a job let out, which is a defect.
    """

    def __init__(self, name: str, count: int, failed: Callable[[BaseException], None]) -> None:
        self.count = count
        self._failed = failed
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"runspan-{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Does the job once a thread is free."""
        self._jobs.put(job)

    def close(self, timeout: float) -> None:
        """The threads end after the jobs that are under way; those of them that take longer are left behind."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:
                self._failed(error)
