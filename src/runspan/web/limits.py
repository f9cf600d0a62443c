"""``ServerLimits``: the bounds of the HTTP server, and how an application asks for its share of them; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from runspan.web.config import MIB

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

ADMISSION: Final = "runspan.admission"
"""In the WSGI environment: the ``Admission`` of the request. Other servers than ``WebServer`` do not set it."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What clients may use of a server. Times are in seconds, sizes in bytes."""

    concurrency: int = 16
    """Requests that are handled at once. A tenant may use as many of these places as are free: half of them if it is
    the only one, then half of the rest for the next one, and so on. A response that is made piece by piece keeps its
    place until the client has read most of it."""
    queue_time: float = 5.0
    """How long a request waits for one of the places of its tenant. Then it is refused, and may be sent again."""
    connections: int = 1000
    """Open connections. One more closes the one that has been idle for longest."""
    client_connections: int = 200
    """Open connections of one client address, or of one IPv6 network of 64 bits."""
    idle_time: float = 120.0
    """How long a connection may stay open without a request."""
    header_time: float = 15.0
    """How long the headers of a request may take."""
    min_rate: int = 16 << 10
    """Bytes a second that a client has to send of a body, or to read of a response, on average after ``slow_time``."""
    slow_time: float = 30.0
    """How long a client may send or read more slowly than that."""
    bodies: int = 512 * MIB
    """Request bodies that are being received or handled, in memory and on disk. A tenant may use half of it. At least
    twice the largest body."""
    unsent: int = 256 * MIB
    """Responses that clients have not read yet. Over it, the connection closes that has been sending for longest."""
    drain_time: float = 5.0
    """How long the rest of a request is read and discarded after its refusal, so that the client reads the response."""
    header_bytes: int = 32 << 10
    """The first line and the headers of a request."""

    def is_too_slow(self, seconds: float, moved: int) -> bool:
        """Whether a client that moved so many bytes in this time is slower than allowed."""
        return seconds > self.slow_time and moved < (seconds - self.slow_time) * self.min_rate


class Admission(Protocol):
    """What a request may use of the server. A request may be handled again from the start until it has its place."""

    @property
    def principals(self) -> dict[tuple[str, str], Any]:
        """The results of the application's authorization by permission and rate limit, so that it counts once."""
        ...

    def enter(self, tenant: str | None) -> None:
        """Take one of the places of a tenant until the request ends; None for requests that belong to no tenant.

        Call it before anything that may wait for a backend. May raise ServerBusy, or a BaseException with which the
        server takes the request back to handle it later.
        """
        ...


def enter(environ: WSGIEnvironment, tenant: str | None) -> None:
    """Take one of the places of a tenant, if the server limits them; see ``Admission.enter``."""
    admission: Admission | None = environ.get(ADMISSION)
    if admission is not None:
        admission.enter(tenant)
