"""``Connection`` and ``Request``: how requests are read, admitted, handled and answered, each within bounds.

The thread of the server reads and sends for all connections and never waits for one. Threads of the ``Dispatcher``
handle requests and never wait for a client: a response is handed over, and the next request of a connection is read
once it was sent. A connection belongs to a thread of the dispatcher while ``requests`` is not empty. The rest of a
response that is made piece by piece waits for the client without a thread, but keeps its place.

A request with a large body is handled twice, first with its headers only. If the application responds to that, the
request is refused in the form of the application, and its body is discarded as it arrives. If the application begins to
read the body, the body is admitted, stored, and the request is handled from the start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from ipaddress import ip_address
from selectors import EVENT_READ, EVENT_WRITE
from socket import SHUT_WR
from threading import Lock
from typing import Any, Final, NoReturn

from waitress.buffers import OverflowableBuffer  # type: ignore[import-untyped]
from waitress.channel import ClientDisconnected, HTTPChannel  # type: ignore[import-untyped]
from waitress.parser import HTTPRequestParser  # type: ignore[import-untyped]
from waitress.task import ErrorTask, WSGITask  # type: ignore[import-untyped]
from waitress.utilities import BadRequest, InternalServerError, build_http_date  # type: ignore[import-untyped]

from runspan.errors import PayloadTimeout, RunspanError, ServerBusy
from runspan.web.dispatcher import BUSY_RETRY_AFTER, Dispatcher
from runspan.web.errors import JSON, error_body
from runspan.web.limits import ADMISSION, ServerLimits
from runspan.web.middleware import SECURITY_HEADERS
from runspan.web.request import body_too_large

logger = logging.getLogger("runspan.server")

HEALTH_PATH: Final = "/healthz"
"""Handled by the thread of the server, so that it responds while all others wait."""

_SMALL_BODY: Final = 64 << 10
"""Bytes of a body that is read before the application was asked."""
_BODY_BYTES: Final = 64 << 10
"""Bytes read at once while a body arrives."""
_MAX_CHUNK_LINE: Final = 1 << 10
_MAX_TRAILER: Final = 8 << 10
_MAX_ADDRESS: Final = 64
"""Characters of an address in X-Forwarded-For, with its port."""
_MOST_AHEAD: Final = 4 << 20
"""Bytes that are made of a response before the client has read others."""
_SENT_AT_ONCE: Final = 64 << 10
"""Bytes of a response that are sent while more of it is made: a compressed one is slow to grow."""
_CONTINUE_BELOW: Final = 1 << 20
_BUFFER_BYTES: Final = 256 << 10
"""Bytes in one buffer: it is freed as a whole."""
_CODES: Final = {408: "REQUEST_TIMEOUT", 413: "PAYLOAD_TOO_LARGE", 500: "INTERNAL_ERROR"}


class Parked(BaseException):
    """The request waits for a place. No Exception, so that no handler of the application catches it."""


class BodyAwaited(BaseException):
    """The application wants the body, which is not there yet."""


class Paused(BaseException):
    """The client has yet to read what was made of the response."""


class HeaderTimeout(BadRequest):  # type: ignore[misc]  # waitress has no types
    code = 408
    reason = "Request Timeout"


class BodyBudget:
    """The bytes of all request bodies, and of those of each tenant. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._used: dict[str | None, int] = {}

    def reserve(self, tenant: str | None, size: int) -> None:
        """Take bytes of the budget. Raises ServerBusy if they are not there."""
        with self._lock:
            used = self._used.get(tenant, 0)
            if sum(self._used.values()) + size > self._limit or used + size > self._limit // 2:
                raise ServerBusy(
                    "too many request bodies are being received",
                    retry_after=BUSY_RETRY_AFTER,
                    hint="retry after the seconds in Retry-After",
                )
            self._used[tenant] = used + size

    def release(self, tenant: str | None, size: int) -> None:
        with self._lock:
            self._used[tenant] -= size
            if not self._used[tenant]:
                del self._used[tenant]


class Request(HTTPRequestParser):  # type: ignore[misc]
    """A request as it is read, and its admission by the application; see ``limits.Admission``."""

    def __init__(self, server: Any) -> None:
        super().__init__(server.adj)
        self._dispatcher: Dispatcher = server.task_dispatcher
        self._budget: BodyBudget = server.bodies
        self._max_body: int = server.max_body
        self.started = time.monotonic()
        """When its first byte arrived, later when its body was admitted."""
        self.admitted = False
        """Whether the body may be read."""
        self.refusal: RunspanError | None = None
        """Why the application must refuse the request before it does anything else."""
        self.body_error: RunspanError | None = None
        """Why the body cannot be read."""
        self.principals: dict[tuple[str, str], Any] = {}
        self.tenant: str | None = None
        self.has_place = False
        self._reserved = 0

    @property
    def is_body_small(self) -> bool:
        return not self.chunked and not self.expect_continue and self.content_length <= _SMALL_BODY

    def enter(self, tenant: str | None) -> None:
        if self.has_place:
            return
        self.tenant = tenant
        if self.refusal is not None:
            raise self.refusal
        if not self._dispatcher.enter(self):
            raise Parked

    def leave(self) -> None:
        """Leave the place, if the request has one."""
        if self.has_place:
            self.has_place = False
            self._dispatcher.leave(self)

    def admit(self) -> NoReturn:
        """Admit the body, whose size the application has accepted. Raises ServerBusy if there is no room for it."""
        if self.content_length > self._max_body:
            raise body_too_large(self._max_body, f"{self.content_length} bytes")
        if self.content_length:
            self._reserve(self.content_length)
        raise BodyAwaited

    def received(self, data: bytes) -> int:
        """Take a part of the request, and return how many bytes belong to it."""
        try:
            consumed: int = super().received(data)
            if self.chunked:
                self._count_chunks()
        except ServerBusy as error:
            self.fail_body(error)
            return len(data)
        except OSError as error:
            logger.warning("cannot store a request body: %s", error)
            busy = ServerBusy("there is no room for the body", got=error.strerror or "", retry_after=BUSY_RETRY_AFTER)
            self.fail_body(busy)
            return len(data)
        return consumed

    def _count_chunks(self) -> None:
        size = len(self.body_rcv)
        if len(self.body_rcv.control_line) > _MAX_CHUNK_LINE or len(self.body_rcv.trailer) > _MAX_TRAILER:
            self.error = BadRequest("a line between the chunks is too long")
            self.completed = True
        elif size > self._max_body:
            # The application refuses it by this header; what has arrived is over its limit.
            self.headers["CONTENT_LENGTH"] = str(size)
            self.completed = True
        elif size > self._reserved:
            self._reserve(size - self._reserved)

    def fail_body(self, error: RunspanError) -> None:
        """Hand the request to the application with a body that raises the error."""
        self.body_error = error
        self.completed = True

    @property
    def is_read(self) -> bool:
        """Whether nothing more of the request can arrive."""
        return self.completed and self.body_error is None and self.error is None and not self._is_cut

    @property
    def is_late(self) -> bool:
        """Whether the client took too long to send it."""
        return isinstance(self.error, HeaderTimeout) or isinstance(self.body_error, PayloadTimeout)

    @property
    def _is_cut(self) -> bool:
        return self.body_rcv is not None and not self.body_rcv.completed

    def get_body_stream(self) -> Any:
        """Return what the application reads as the body."""
        if self.body_error is not None or not self.completed:
            return _AbsentBody(self)
        return super().get_body_stream()

    def close(self) -> None:
        """Release the body. Idempotent."""
        super().close()
        if self._reserved:
            self._budget.release(self.tenant, self._reserved)
            self._reserved = 0

    def _reserve(self, size: int) -> None:
        self._budget.reserve(self.tenant, size)
        self._reserved += size


class _AbsentBody:
    """Stands for a body that has not arrived, or never will: who reads it, asks for its admission."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def read(self, *_: Any) -> NoReturn:
        if self._request.body_error is not None:
            raise self._request.body_error
        self._request.admit()

    readline = readlines = readinto = read

    def __iter__(self) -> NoReturn:
        self.read()


class _Task(WSGITask):  # type: ignore[misc]
    """Calls the application. ``service`` raises Paused when it is to be called again later for the rest."""

    def __init__(self, connection: Connection, request: Request) -> None:
        super().__init__(connection, request)
        self._body: Any = None
        self._chunks: Iterator[bytes] = iter(())

    def execute(self) -> None:
        try:
            if self._body is None:
                self._body = self.channel.server.application(self.get_environment(), self._start_response)
                self._chunks = iter(self._body)
            for chunk in self._chunks:
                if chunk:
                    self.write(chunk)
                    if self.channel.is_far_ahead():
                        raise Paused
        except Paused:
            raise
        except BaseException:
            self.close_body()
            raise
        self.close_body()
        if self.content_length is not None and self.content_bytes_written != self.content_length and not self._is_head:
            self.set_close_on_finish()  # the client must not wait for the rest

    def close_body(self) -> None:
        """Let the application release what the response is made from. Idempotent."""
        close = getattr(self._body, "close", None)
        self._body = None
        if close is not None:
            close()

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        if exc_info is not None and self.wrote_header:
            raise exc_info[1]
        for name, value in headers:
            if "\n" in value or "\r" in value or "\n" in name or "\r" in name:
                raise ValueError(f"the header {name!r} has a line end")
            if name.lower() == "content-length":
                self.content_length = int(value)
        self.status, self.response_headers, self.complete = status, list(headers), True
        write: Callable[..., Any] = self.write
        return write

    @property
    def _is_head(self) -> bool:
        return bool(self.request.command == "HEAD")

    def finish(self) -> None:
        if not self.wrote_header:
            self.write(b"")
        if self.chunked_response and not self._is_head:
            self.channel.write_soon(b"0\r\n\r\n")

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[ADMISSION] = self.request
        del environ["wsgi.file_wrapper"]  # ``Connection`` takes bytes only
        forwarded = environ.pop("HTTP_X_FORWARDED_FOR", "")
        if forwarded and environ["REMOTE_ADDR"] == self.channel.server.trusted_proxy:
            environ["REMOTE_ADDR"] = environ["REMOTE_HOST"] = _last_address(forwarded) or environ["REMOTE_ADDR"]
        return environ

    def build_response_header(self) -> bytes:
        """Return the status line and the headers. Only a response whose end is not marked closes the connection."""
        request, has_length = self.request, self.content_length is not None
        asked = request.headers.get("CONNECTION", "").lower()
        has_content = self.has_body and not self._is_head
        if self.version == "1.1":
            is_kept = asked != "close"
            self.chunked_response = has_content and not has_length
        else:
            is_kept = asked == "keep-alive" and (has_length or not has_content)
        if not is_kept or self.channel.server.stopping or not request.is_read:
            self.close_on_finish = True
        lines = [f"HTTP/{self.version} {self.status}"]
        lines += [f"{name}: {value}" for name, value in self.response_headers if name.lower() != "content-length"]
        if has_length and self.has_body:
            lines.append(f"Content-Length: {self.content_length}")
        if self.chunked_response:
            lines.append("Transfer-Encoding: chunked")
        if self.close_on_finish:
            lines.append("Connection: close")
        elif self.version == "1.0":
            lines.append("Connection: Keep-Alive")
        lines.append(f"Server: {self.channel.adj.ident}\r\nDate: {_http_date(int(self.start_time))}\r\n\r\n")
        return "\r\n".join(lines).encode("latin-1")

    def set_close_on_finish(self) -> None:
        self.close_on_finish = True


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    """Refuses what is no HTTP request, in the form of the application's errors."""

    def execute(self) -> None:
        error = self.request.error
        body = error_body(_CODES.get(error.code, "VALIDATION_ERROR"), f"{error.reason}: {error.body[:500]}").encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.extend([("Content-Type", JSON), *SECURITY_HEADERS.items()])
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Connection(HTTPChannel):  # type: ignore[misc]
    """A connection of the server, one request at a time."""

    requests: list[Request]
    """The request that a thread of the dispatcher handles, or none."""
    request: Request | None
    """The request that has arrived in part."""
    close_when_flushed: bool
    will_close: bool

    def __init__(self, server: Any, sock: Any, addr: Any, adj: Any, map: Any = None) -> None:
        self.limits: ServerLimits = server.limits
        self.client: str = ""
        """Which connections are counted together; empty for those of the trusted proxy."""
        self.since = time.monotonic()
        """When the connection was opened, or its last response was handed over."""
        self._received = b""
        """What has arrived after the current request."""
        self._discards = False
        """Whether a part of the request was not read when it was answered."""
        self._discard_until = 0.0
        """Until when the rest of the request is discarded."""
        self._watched = 0
        """What the selector waits for. It also waits for a request while one is handled, until there is one."""
        self._handed_over = 0
        """Bytes of the last response that were not sent at once."""
        self._paused: _Task | None = None
        """The task whose response waits for the client."""
        super().__init__(server, sock, addr, adj, map=map)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being handled, or a response is being sent."""
        return bool(self.requests or self.total_outbufs_len)

    @property
    def is_reading(self) -> bool:
        """Whether a request has arrived in part."""
        return self.request is not None

    # In the thread of the server.

    def watch(self) -> None:
        """Continue with what has arrived, and wait for what the connection needs next."""
        if not self.connected or self.requests:
            return
        wanted = EVENT_READ if self.readable() else 0
        if not self.connected or self.requests:
            return
        if self.writable():
            wanted |= EVENT_WRITE
        if wanted != self._watched:
            if not self._watched:
                self.server.selector.register(self._fileno, wanted)
            elif wanted:
                self.server.selector.modify(self._fileno, wanted)
            else:
                self.server.selector.unregister(self._fileno)
            self._watched = wanted

    def unwatch(self) -> None:
        """Wait for nothing until the request has been handled."""
        if self._watched:
            self.server.selector.unregister(self._fileno)
            self._watched = 0

    def readable(self) -> bool:
        """Whether to read. Continues with what has arrived."""
        if self.requests:
            return False
        if self._discard_until:
            return True
        if self.total_outbufs_len or self.close_when_flushed or self.will_close:
            return False
        if self._received or (self.request is not None and self.request.expect_continue):
            self._guard(self._advance)
            return self.connected and not (
                self.requests or self.total_outbufs_len or self.close_when_flushed or self.will_close
            )
        return True

    def handle_read(self) -> None:
        # The time to split chunks grows with the square of what is read at once.
        is_large = self._discard_until or (self.request is not None and not self.request.chunked)
        try:
            data = self.recv(_BODY_BYTES if is_large else self.adj.recv_bytes)
        except BlockingIOError:  # the event was that of a closed connection with the same number
            return
        except OSError:
            self.handle_close()
            return
        if data and not self._discard_until:
            self._received += data
            self._guard(self._advance)

    def handle_write(self) -> None:
        if self.connected:  # what was read in the same turn may have closed it
            self._flush_exception(self._flush_some_if_lockable if self.requests else self._flush_some)
        if not self.connected:
            return
        if self._paused is not None and not self.requests and self.total_outbufs_len < _CONTINUE_BELOW:
            self.requests = [self._paused.request]
            self.server.add_task(self)
        if self.close_when_flushed and not self.total_outbufs_len and not self.requests:
            self.close_when_flushed = False
            if self._discards and not self.will_close:
                self._discard_until = time.monotonic() + self.limits.drain_time
                with suppress(OSError):
                    self.socket.shutdown(SHUT_WR)
            else:
                self.will_close = True
        if self.will_close:
            self.handle_close()

    def handle_close(self) -> None:
        if self.request is not None:
            self.request.close()
            self.request = None
        if self._paused is not None and not self.requests:
            task, self._paused = self._paused, None
            self._give_up(task)
        super().handle_close()

    def handle_error(self) -> None:
        """Log an unexpected error of this connection, and close it."""
        logger.exception("closing the connection of %s", self.addr[0])
        self.handle_close()

    def del_channel(self, map: Any = None) -> None:
        self.unwatch()
        if self.server.active_channels.get(self._fileno) is self:
            self.server.forget(self)
        super().del_channel(map)

    def enforce_times(self, now: float) -> None:
        """Close the connection, or refuse its request, if the client takes too long."""
        if self.requests:
            return
        request = self.request
        if self._discard_until:
            if now > self._discard_until:
                self.handle_close()
        elif self.total_outbufs_len:
            if self.limits.is_too_slow(now - self.since, self._handed_over - self.total_outbufs_len):
                self.handle_close()
        elif request is None:
            if now - self.since > self.limits.idle_time:
                self.handle_close()
        elif not request.headers_finished:
            if now - request.started > self.limits.header_time:
                request.error = HeaderTimeout(f"the headers took more than {self.limits.header_time:g} seconds")
                request.completed = True
                self._guard(partial(self._handle, request))
        elif self.limits.is_too_slow(now - request.started, request.body_bytes_received):
            got = f"{request.body_bytes_received} bytes in {now - request.started:.0f} seconds"
            expected = f"{self.limits.min_rate} bytes a second"
            request.fail_body(PayloadTimeout(where="body", expected=expected, got=got, hint="send it in parts"))
            self._guard(partial(self._handle, request))

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self.handle_error()

    def _advance(self) -> None:
        """Read the current request as far as it has arrived."""
        request = self.request
        if request is not None and request.admitted and request.expect_continue:
            self.send_continue()
        while self._received and not self.total_outbufs_len:
            request = self.request
            if request is None:
                request = self.request = Request(self.server)
            self._received = self._received[request.received(self._received) :]
            if request.empty:
                self.request = None
            elif request.completed or (request.headers_finished and not self._admits(request)):
                self._handle(request)
                return

    def _admits(self, request: Request) -> bool:
        """Whether the body may be read without the application, or may be since the application wants it."""
        request.admitted = request.admitted or request.is_body_small
        return request.admitted

    def _handle(self, request: Request) -> None:
        self.request = None
        self.requests = [request]
        if request.error is not None or (request.completed and request.path == HEALTH_PATH):
            self.service()
        else:
            self.server.add_task(self)

    # In a thread of the dispatcher.

    def write_soon(self, data: bytes) -> int:
        """Collect a part of the response, without waiting until the client has read others."""
        if not self.connected:
            raise ClientDisconnected
        with self.outbuf_lock:
            if len(self.outbufs[-1]) > _BUFFER_BYTES:
                self.outbufs.append(OverflowableBuffer(self.adj.outbuf_overflow))
            self.outbufs[-1].append(data)
            self.total_outbufs_len += len(data)
        return len(data)

    def is_far_ahead(self) -> bool:
        """Send what is made, and return whether the client has so much to read that no more is to be made now."""
        if self.total_outbufs_len >= _SENT_AT_ONCE:
            self._send()
        return bool(self.total_outbufs_len > _MOST_AHEAD)

    def service(self) -> None:
        """Handle the request that has been read, or whose headers have been read; or make more of its response."""
        request = self.requests[0]
        task = self._paused or (_ErrorTask if request.error else _Task)(self, request)
        self._paused = None
        try:
            if self.connected:
                task.service()
            elif isinstance(task, _Task):
                task.close_body()
        except Parked:
            self.server.task_dispatcher.park(self)
            return
        except Paused:
            self._paused = task
            self._await_reading()
            return
        except BodyAwaited:
            request.leave()
            request.admitted = True
            request.started = time.monotonic()
            self.request = request
            self._hand_back()
            return
        except ClientDisconnected:
            task.close_on_finish = True
        except Exception:
            logger.exception("the application failed")
            task = self._fail(request, task)
        self._send()
        request.leave()
        if task.close_on_finish or not self.connected:
            self._discards = not request.is_late and (not request.is_read or bool(self._received))
            self.close_when_flushed = True
        request.close()
        self._await_reading()

    def _await_reading(self) -> None:
        """Let the thread of the server send what the client has not read."""
        self.since = time.monotonic()
        self._handed_over = self.total_outbufs_len
        if self._handed_over:
            self.server.has_unsent = True
        self._hand_back()

    def _give_up(self, task: _Task) -> None:
        """Make no more of a response."""
        with suppress(Exception):
            task.close_body()
        task.request.leave()
        task.request.close()

    def _fail(self, request: Request, task: Any) -> Any:
        """Respond to a request for which the application raised an exception."""
        if not task.wrote_header:
            failed = Request(self.server)
            failed.version = request.version
            failed.error = InternalServerError("see the server's log")
            task = _ErrorTask(self, failed)
            with suppress(ClientDisconnected):
                task.service()
        task.close_on_finish = True
        return task

    def _send(self) -> None:
        """Send as much of the response as the system takes; the thread of the server sends the rest."""
        with self.outbuf_lock:
            if self.connected:
                self._flush_exception(self._flush_some, do_close=False)

    def _hand_back(self) -> None:
        """Give the connection to the thread of the server, which notices the next request by itself."""
        needs_thread = self.writable() or self._received or self.request is not None
        self.requests = []
        # The thread of the server looks at these two in the opposite order, so that one of both acts.
        if self.connected and (needs_thread or not self._watched & EVENT_READ):
            self.server.returned.append(self)
            self.server.pull_trigger()


@lru_cache(maxsize=4)
def _http_date(second: int) -> str:
    date: str = build_http_date(second)
    return date


def _last_address(forwarded: str) -> str:
    """Return the last entry of X-Forwarded-For in its canonical form, or "" if it is no address."""
    text = forwarded[-_MAX_ADDRESS:].rpartition(",")[2].strip()
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        return str(ip_address(host)) if not port.strip(":") or port.strip(":").isdigit() else ""
    except ValueError:
        return ""
