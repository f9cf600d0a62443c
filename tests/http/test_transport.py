"""What all HTTP clients share: responses within the timeout, bounded waits, and messages without secrets."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from random import Random
from typing import Any

import httpcore
import httpx
import pytest
import zstandard

from runspan.backends.remote.client import RemoteClient
from runspan.backends.remote.config import remote_config
from runspan.backends.runspan_api import RunspanApiReader
from runspan.delivery import exporter_config
from runspan.delivery.http_transport import HttpTransport
from runspan.delivery.transport import Retryable
from runspan.errors import BackendUnreachable, RunspanError
from runspan.http import client
from runspan.http.client import DeadlineTransport, ResponseTooLarge
from runspan.http.retry import RateLimiter, RetryPolicy, parse_retry_after
from runspan.http.urls import MAX_MESSAGE, redact_url, sanitize_message
from runspan.platform_api.client import ApiClient, PlatformClient
from support.cli import runspan

TIMEOUT = 0.5
SOON = 10.0
"""Seconds: a busy machine is slow, and without a deadline each of these responses takes at least twice as long."""
DRIPS = 100
PAUSE = 0.2


@contextmanager
def raw_server(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Serve each connection by a function, with an event that is set when the test is over."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def respond(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            serve(connection, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=respond, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for thread in (accepting, *threads):
            thread.join()


def dripping(part: str) -> Callable[[socket.socket, threading.Event], None]:
    """Respond without pause and without end: in the headers, the body, or a compressed body of empty blocks."""
    empty = b"\x00\x00\x00\xff\xff"  # a stored block of no bytes

    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1 << 16)
        head = b"HTTP/1.1 200 OK\r\n"
        pieces = [b"x-%d: y\r\n" % number for number in range(DRIPS)]
        if part == "body":
            head += b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
            pieces = [b" "] * DRIPS
        elif part == "compressed body":
            head += b"content-encoding: gzip\r\ncontent-length: 100000\r\n\r\n"
            pieces = [gzip.compress(b"")[:10], *[empty] * DRIPS]
        connection.sendall(head)
        for piece in pieces:
            connection.sendall(piece)
            if over.wait(PAUSE):
                return

    return serve


def export(url: str) -> None:
    with closing(HttpTransport(exporter_config({}, endpoint=url, timeout=TIMEOUT))) as transport:
        assert isinstance(transport.send(b""), Retryable)
    raise BackendUnreachable("an exporter retries later instead")


def platform_client(url: str, key: str | None = None, timeout: float = TIMEOUT) -> PlatformClient:
    """A client that sends each request once."""
    return PlatformClient(
        ApiClient(url, key_hint="", timeout=timeout),
        key=lambda: key,
        rate_limiter=RateLimiter(0, sleep=time.sleep),
        sleep=time.sleep,
        halted=lambda: False,
        retry=RetryPolicy(max_attempts=1),
    )


def sync(url: str) -> None:
    with closing(platform_client(url)) as client:
        client.document("a")


def rest(url: str) -> None:
    with closing(RunspanApiReader(url, timeout=TIMEOUT)) as reader:
        reader.document("a")


def remote(url: str) -> None:
    with closing(RemoteClient(remote_config(f"tempo+{url}", {"RUNSPAN_BACKEND_TIMEOUT": str(TIMEOUT)}))) as client:
        client.get("/")


@pytest.mark.parametrize(("seconds", "hint"), [(0.0, "is it running"), (0.2, "http_server_write_timeout")])
def test_a_server_that_hangs_up_after_a_while_has_a_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch, seconds: float, hint: str
) -> None:
    """Tempo ends a search after 30 seconds by default, without a response."""
    monkeypatch.setattr(client, "_INTERRUPTED_SECONDS", 0.1)

    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1 << 16)
        over.wait(seconds)

    with raw_server(serve) as url, pytest.raises(BackendUnreachable, match=hint):
        remote(url)


LARGE_WINDOW = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compress(
    bytes(1 << 28)
)
BOMBS = {
    "gzip": (b"gzip", gzip.compress(bytes(1 << 28), 9)),
    "deflate": (b"deflate", zlib.compress(bytes(1 << 28), 9)),
    "zstd": (b"zstd", zstandard.ZstdCompressor().compress(bytes(1 << 28)) * 20),
    "zstd with a large window": (b"zstd", LARGE_WINDOW),
    "brotli": (b"br", bytes(1 << 16)),
    "gzip in gzip": (b"gzip, gzip", gzip.compress(gzip.compress(bytes(1 << 28), 9))),
    "plain": (b"identity", bytes(1 << 25)),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"503 Busy"])
def test_an_answer_is_read_with_a_bound_whatever_its_encoding(kind: str, status: bytes) -> None:
    """A remote server decides neither how much of its answer is held in memory nor how it is packed."""
    encoding, body = BOMBS[kind]

    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1 << 16)
        head = b"HTTP/1.1 %b\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n" % (status, encoding, len(body))
        connection.sendall(head)
        connection.sendall(body)

    with raw_server(serve) as url, closing(ApiClient(url, key_hint="", max_response_bytes=1 << 20)) as client:
        tracemalloc.start()
        try:
            with pytest.raises((ResponseTooLarge, BackendUnreachable)) as caught:
                client.get("/", {}, None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 << 20
    assert ("content encoding" in str(caught.value)) == (kind in ("brotli", "gzip in gzip"))


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        (b"gzip", gzip.compress),
        (b"X-GZIP", gzip.compress),
        (b"zstd", zstandard.ZstdCompressor().compress),
        (b"ZSTD", lambda data: b"".join(map(zstandard.ZstdCompressor().compress, (data[:1], b"", data[1:])))),
        (b"deflate", zlib.compress),
        (b"deflate", lambda data: zlib.compress(data, wbits=-15)),
        (b"identity", bytes),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 100_000, 1 << 20])
def test_encodings_that_are_accepted(encoding: bytes, pack: Callable[[bytes], bytes], size: int) -> None:
    """In pieces of any size, up to the bound; one that is cut off is an error and never a shorter answer."""
    content = Random(size).randbytes(size)
    packed = pack(content) if size else b""

    def serve(connection: socket.socket, over: threading.Event, body: bytes = packed) -> None:
        connection.recv(1 << 16)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n" % (encoding, len(body))
        )
        for start in range(0, len(body), 7000):
            connection.sendall(body[start : start + 7000])

    with raw_server(serve) as url, closing(ApiClient(url, key_hint="", max_response_bytes=1 << 20)) as client:
        assert client.get("/", {}, None).content == content
    if size > 1 and encoding != b"identity":
        with (
            raw_server(partial(serve, body=packed[:-5])) as url,
            closing(ApiClient(url, key_hint="", max_response_bytes=1 << 20)) as client,
            pytest.raises(BackendUnreachable, match="DecodingError"),
        ):
            client.get("/", {}, None)


@pytest.mark.parametrize("part", ["headers", "body", "compressed body"])
@pytest.mark.parametrize("send", [export, sync, rest, remote])
def test_the_timeout_bounds_a_response_that_drips(send: Callable[[str], None], part: str) -> None:
    """Every client fails within its timeout, though bytes arrive all the time."""
    with raw_server(dripping(part)) as url:
        began = time.monotonic()
        with pytest.raises(BackendUnreachable):
            send(url)
        assert time.monotonic() - began < SOON


def test_the_timeout_bounds_a_request_that_is_read_byte_by_byte() -> None:
    """A server that reads slowly blocks its client no longer than the timeout."""

    def serve(connection: socket.socket, over: threading.Event) -> None:
        while not over.wait(0.01) and connection.recv(1 << 12):
            pass

    with raw_server(serve) as url, httpx.Client(transport=DeadlineTransport(url), timeout=TIMEOUT) as client:
        began = time.monotonic()
        with pytest.raises(httpx.WriteTimeout):
            client.post(url, content=b"x" * (64 << 20))
        assert time.monotonic() - began < SOON


def test_each_request_of_a_connection_has_its_own_deadline() -> None:
    """The second one on a kept connection has all of its time."""
    seen: list[bytes] = []

    def serve(connection: socket.socket, over: threading.Event) -> None:
        while got := connection.recv(1 << 16):
            seen.append(got.split(b"\r\n", 1)[0])
            over.wait(0.3)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with raw_server(serve) as url, httpx.Client(transport=DeadlineTransport(url), timeout=5.0) as client:
        assert [client.get(f"{url}/{number}").text for number in range(3)] == ["ok"] * 3
    assert seen == [b"GET /%d HTTP/1.1" % number for number in range(3)]


def test_every_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may resolve to an address without a listener, as localhost does."""

    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with raw_server(serve) as url:
        port = int(url.rpartition(":")[2])
        getaddrinfo = socket.getaddrinfo

        def both(host: str, *args: object, **options: object) -> object:
            if host != "two.example":
                return getaddrinfo(host, *args, **options)  # type: ignore[arg-type]
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, ("127.0.0.9", port)), (*kind, ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        with httpx.Client(transport=DeadlineTransport(url), timeout=5.0) as client:
            assert client.get(f"http://two.example:{port}").status_code == 204


def test_close_also_closes_a_connection_that_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request fails, and the server sees the end of the connection: httpcore would keep it open."""
    ended = threading.Event()
    connect = httpcore.SyncBackend.connect_tcp

    def serve(connection: socket.socket, _: threading.Event) -> None:
        while connection.recv(1 << 16):
            pass
        ended.set()

    with raw_server(serve) as url:
        transport = DeadlineTransport(url)
        opened: list[socket.socket] = []

        def connect_meanwhile(self: httpcore.SyncBackend, *arguments: Any, **named: Any) -> httpcore.NetworkStream:
            stream = connect(self, *arguments, **named)
            opened.append(stream.get_extra_info("socket"))
            transport.close()
            return stream

        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_meanwhile)
        request = httpx.Request("GET", url, extensions={"timeout": {"read": SOON}})
        with pytest.raises(httpx.ConnectError, match="closed"):
            transport.exchange(request, 100)
        assert ended.wait(SOON)
        assert opened[0].fileno() == -1


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 64 + ".example"])
def test_an_unknown_host_is_a_connect_error(host: str) -> None:
    """Also one that no name server accepts."""
    transport = DeadlineTransport("http://x")
    request = httpx.Request("GET", f"http://{host}:1", extensions={"timeout": {"connect": 5.0}})
    with pytest.raises(httpx.ConnectError):
        transport.handle_request(request)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": "99999999999"}, 2.0**31),
        ({"retry-after": "9" * 5000}, 2.0**31),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 253402300795.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 6.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT", "date": "Thu, 01 Jan 1970 00:00:08 GMT"}, 2.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 99999 00:00:01 GMT"}, None),
        ({"retry-after": "\u0667"}, None),
    ],
)
def test_retry_after_is_parsed_as_sent(headers: dict[str, str], seconds: float | None) -> None:
    """As a number or as a date; a number that nobody can represent is 2**31."""
    assert parse_retry_after(headers, now=4.0) == seconds


def test_a_long_pause_of_the_rate_limiter_is_several_sleeps() -> None:
    """No sleep has to accept any number, and ``halted`` is asked between two of them."""
    now = 0.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    limiter = RateLimiter(0, sleep=sleep, clock=lambda: now)
    limiter.pause(1e11)
    assert (limiter.asked, limiter.paused_for) == (1e11, 3600.0)
    limiter.pause(5)
    assert limiter.asked == 1e11
    assert not limiter.acquire(lambda: len(slept) == 5)
    assert max(slept) <= 60


def test_a_servers_message_is_one_line_without_secrets() -> None:
    """Whatever it repeats, and whatever it would do to a terminal."""
    assert sanitize_message("key s3cr3t\x1b[2J\nis no key", ["s3cr3t"]) == "key *** [2J is no key"
    assert sanitize_message("abc is short", ["abc"]) == "abc is short"
    long = sanitize_message("x" * (MAX_MESSAGE - 3) + "s3cr3t" * 10, ["s3cr3t"])
    assert "s3" not in long
    assert len(long) == MAX_MESSAGE


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/?q=secret", "http://h/"),
        ("http://u:secret@h:1/p#secret", "http://h:1/p"),
        ("h?secret", "h"),
        ("http://h?secret@x/y", "http://h"),
        ("sqlite:data", "sqlite:data"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, expected: str) -> None:
    """Queries and logins carry keys."""
    assert redact_url(url) == expected


@pytest.mark.parametrize(
    "args",
    [
        ("sync", "http://h/?q=s3cr3t"),
        ("sync", "ftp://h/?q=s3cr3t"),
        ("list", "--backend", "http://h/?q=s3cr3t"),
        ("list", "--backend", "tempo+http://h/?q=s3cr3t"),
        ("list", "--backend", "ftp://h/?q=s3cr3t"),
        ("get", "x", "--backend", "http://h/#s3cr3t"),
    ],
)
def test_no_command_shows_the_query_of_a_url(args: tuple[str, ...]) -> None:
    """It is refused, and not repeated."""
    result = runspan(*args, code=2)
    assert "s3cr3t" not in result.output
    assert "://h" in result.output or "query" in result.output


def echoing(status: int) -> Callable[[socket.socket, threading.Event], None]:
    """Echo the key of a request."""

    def serve(connection: socket.socket, over: threading.Event) -> None:
        while request := connection.recv(1 << 16):
            key = request.lower().partition(b"x-api-key: ")[2].partition(b"\r")[0]
            body = b'{"success":false,"error":{"code":"%s","message":"key %s is of no use"}}' % (key, key)
            head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            connection.sendall(head % (status, len(body)) + body)

    return serve


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_no_client_repeats_the_key_that_a_server_repeats(status: int) -> None:
    """Errors are printed, logged, and kept in checkpoints."""
    key = "rs_s3cr3t"
    with raw_server(echoing(status)) as url:
        reader = RunspanApiReader(url, api_key=key)
        with closing(reader), pytest.raises(RunspanError) as caught:
            reader.document("a")
        assert key not in str(caught.value)
        assert "key *** is of no use" in str(caught.value)
        if status == 429:
            return  # PlatformClient waits for as long as it takes
        client = platform_client(url, key, timeout=5.0)
        with closing(client), pytest.raises(RunspanError) as caught:
            client.document("a")
        assert key not in str(caught.value) + client.last_error
        assert "key *** is of no use" in str(caught.value)
