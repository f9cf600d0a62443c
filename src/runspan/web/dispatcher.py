"""``Dispatcher``: the threads that handle requests, and the places that tenants share."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from waitress.task import ThreadedTaskDispatcher  # type: ignore[import-untyped]

from runspan.errors import ServerBusy

SPARE_THREADS: Final = 2
"""Threads beside the places: for requests that wait for no backend, and to find out whose a request is."""
BUSY_RETRY_AFTER: Final = 2.0


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """Runs the requests of connections in threads, of which no tenant's requests occupy all.

    A request runs until the application asks for a place (see ``limits.Admission``). A tenant gets one while it has
    fewer than are free. Otherwise the request is parked without a thread until one of the places is left.

    A connection is ``waitress.channel.HTTPChannel``; ``requests[0]`` is the request that it waits for.
    """

    def __init__(self, places: int, queue_time: float) -> None:
        super().__init__()
        self._free = places
        self._queue_time = queue_time
        self._running: dict[str | None, dict[Any, float]] = {}
        """By tenant: its requests that have a place, oldest first, and when they got it."""
        self._parked: dict[str | None, deque[tuple[float, Any]]] = {}
        """By tenant: the connections whose request waits for a place, oldest first, and since when."""
        self.set_thread_count(places + SPARE_THREADS)

    def add_task(self, task: Any) -> None:
        """Run ``task.service()`` in a thread."""
        with self.lock:
            self._add(task)

    def enter(self, request: Any) -> bool:
        """Take a place for a request and return True, or return False if its tenant has its share."""
        with self.lock:
            return self._enter(request)

    def leave(self, request: Any) -> None:
        """Leave the place of a request, and let a parked one have it."""
        with self.lock:
            running = self._running[request.tenant]
            del running[request]
            if not running:
                del self._running[request.tenant]
            self._free += 1
            self._resume_parked()

    def park(self, connection: Any) -> None:
        """Run the request of a connection again once its tenant has a place for it, or has none for too long."""
        request = connection.requests[0]
        now = time.monotonic()
        with self.lock:
            if self._enter(request):
                self._add(connection)
            elif self._is_stuck(request.tenant, now):
                self._refuse(connection)
            else:
                self._parked.setdefault(request.tenant, deque()).append((now, connection))

    def refuse_expired(self) -> None:
        """Refuse the requests that have been parked for too long."""
        expired = time.monotonic() - self._queue_time
        with self.lock:
            for tenant, waiting in list(self._parked.items()):
                while waiting and waiting[0][0] <= expired:
                    self._refuse(waiting.popleft()[1])
                if not waiting:
                    del self._parked[tenant]

    def _enter(self, request: Any) -> bool:
        running = self._running.get(request.tenant)
        if self._free <= (len(running) if running else 0):
            return False
        if running is None:
            running = self._running[request.tenant] = {}
        running[request] = time.monotonic()
        self._free -= 1
        request.has_place = True
        return True

    def _is_stuck(self, tenant: str | None, now: float) -> bool:
        """Whether all requests of a tenant have run for so long that waiting for one of them is in vain."""
        running = self._running.get(tenant)
        return running is not None and now - next(reversed(running.values())) > self._queue_time

    def _resume_parked(self) -> None:
        """Give places to parked requests, to one of each tenant in turn, as long as one may have them."""
        entered = True
        while entered and self._free > 0:
            entered = False
            for tenant, waiting in list(self._parked.items()):
                if self._enter(waiting[0][1].requests[0]):
                    entered = True
                    self._add(waiting.popleft()[1])
                    del self._parked[tenant]
                    if waiting:
                        self._parked[tenant] = waiting  # at the end, so that tenants take turns

    def _refuse(self, connection: Any) -> None:
        connection.requests[0].refusal = ServerBusy(
            "too many requests are being handled",
            retry_after=BUSY_RETRY_AFTER,
            hint="retry after the seconds in Retry-After",
        )
        self._add(connection)

    def _add(self, task: Any) -> None:
        self.queue.append(task)
        self.queue_cv.notify()
