"""The client of the platform's API against a real server behind a proxy with faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runspan.errors import (
    BackendBusy,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    Forbidden,
    NotFound,
    QueryError,
    RunspanError,
    Unauthorized,
)
from runspan.http.client import ResponseTooLarge
from runspan.http.retry import RateLimiter, RetryPolicy
from runspan.model.document import Run
from runspan.platform_api.client import MAX_RESPONSE_BYTES, ApiClient, PlatformClient, parse_api_url
from runspan.platform_api.schema import MalformedResponse, fingerprint_of_summary, read_data, read_page
from support.cli import generated
from support.faulty_platform import EVERY_KIND, Faults, FaultyPlatform, platform
from support.sync import LocalServer, local_server, run_document

QUICK = RetryPolicy(max_attempts=4, first_delay=0.01, max_delay=0.05)


class Clock:
    """Time that passes only by sleeping. slept: All sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def client(
    url: str,
    *,
    key: Callable[[], str | None] = lambda: None,
    timeout: float = 5.0,
    max_response_bytes: int = MAX_RESPONSE_BYTES,
    **options: Any,
) -> PlatformClient:
    api = ApiClient(url, key_hint="set THE_KEY", timeout=timeout, max_response_bytes=max_response_bytes)
    options = {
        "rate_limiter": RateLimiter(0, sleep=time.sleep),
        "sleep": time.sleep,
        "halted": lambda: False,
        "retry": QUICK,
        **options,
    }
    return PlatformClient(api, key=key, **options)


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    return generated(450, seed=3, unfinished=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, bytes]) -> Iterator[LocalServer]:
    with local_server(tmp_path_factory.mktemp("source")) as made:
        made.fill(*texts.values())
        yield made


def all_listed(platform_client: PlatformClient, **filters: str) -> list[str]:
    ids: list[str] = []
    cursor = None
    while True:
        page = platform_client.runs(cursor=cursor, **filters)
        ids += [item.run_id for item in page.items]
        cursor = page.cursor
        if cursor is None:
            return ids


def test_lists_and_documents_are_those_of_the_server(source: LocalServer, texts: dict[str, bytes]) -> None:
    """Every run once over all pages, newest first, and each document verbatim."""
    with closing(client(source.url)) as platform_client:
        ids = all_listed(platform_client)
        assert sorted(ids) == sorted(texts)
        times = [item.time for item in platform_client.runs().items]
        assert times == sorted(times, reverse=True)
        assert {run_id: platform_client.document(run_id).text for run_id in ids} == texts


def test_an_item_of_the_list_has_the_fingerprint_of_the_runs_own_summary(
    source: LocalServer, texts: dict[str, bytes]
) -> None:
    """So a run that did not change between list and document is not fetched twice."""
    with closing(client(source.url)) as platform_client:
        for item in platform_client.runs().items:
            assert item.fingerprint == fingerprint_of_summary(Run.from_json(texts[item.run_id]).summary())


def test_ids_of_every_script_are_sent_completely(tmp_path: Path) -> None:
    """Slashes, dots, percent signs and other scripts are part of an id."""
    ids = ["a/b", "..", "50%", "läuft", "実行", "a b?c#d", "x/trace"]
    with local_server(tmp_path) as made, closing(client(made.url)) as platform_client:
        made.put(*(run_document(run_id) for run_id in ids))
        assert {json.loads(platform_client.document(run_id).text)["id"] for run_id in ids} == set(ids)


def test_requests_that_fail_for_a_while_are_retried(source: LocalServer, texts: dict[str, bytes]) -> None:
    """All lists and documents arrive unchanged through every kind of fault."""
    with platform(source.url, faults=EVERY_KIND, seed=7, pause=0.01) as mock:
        retry = RetryPolicy(max_attempts=10, first_delay=0.001, max_delay=0.01)
        with closing(client(mock.url, retry=retry)) as platform_client:
            assert {run_id: platform_client.document(run_id).text for run_id in list(texts)[:300]} == dict(
                list(texts.items())[:300]
            )
        assert set(mock.injected) >= {"error", "gateway", "cut", "torn", "reset"}
        assert platform_client.requests[0] == len(mock.arrivals)
        assert platform_client.requests[1] > 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("error", BackendBusy),
        ("gateway", BackendBusy),
        ("cut", BackendRefused),
        ("torn", BackendUnreachable),
        ("reset", BackendUnreachable),
        ("slow", BackendUnreachable),
    ],
)
def test_requests_that_always_fail_are_an_error_after_the_last_attempt(
    source: LocalServer, texts: dict[str, bytes], kind: str, expected: type[RunspanError]
) -> None:
    """Each kind of fault has its own error, and the number of attempts is bounded."""
    retry = RetryPolicy(max_attempts=3, first_delay=0.001, max_delay=0.01)
    with platform(source.url, faults=Faults(**{kind: 1.0}), pause=0.5) as mock:
        with closing(client(mock.url, retry=retry, timeout=0.2)) as platform_client:
            with pytest.raises(expected) as caught:
                platform_client.document(next(iter(texts)))
            assert mock.url in str(caught.value)
            assert platform_client.last_error
            assert platform_client.unanswered_for > 0
        assert len(mock.arrivals) == 3


def test_a_port_without_a_listener_is_unreachable() -> None:
    """The error names the address."""
    platform_client = client("http://127.0.0.1:9", retry=RetryPolicy(max_attempts=1))
    with closing(platform_client), pytest.raises(BackendUnreachable, match=r"127\.0\.0\.1:9"):
        platform_client.runs()


def test_a_requested_delay_pauses_every_thread(source: LocalServer, texts: dict[str, bytes]) -> None:
    """After a 429 nothing is sent before the time it names, and a 429 uses up no attempt."""
    with platform(source.url, limit=5, window=1.0) as mock:
        with closing(client(mock.url, retry=RetryPolicy(max_attempts=1))) as platform_client:
            ids = list(texts)[:12]
            got: dict[str, bytes] = {}

            def ask(run_id: str) -> None:
                got[run_id] = platform_client.document(run_id).text

            threads = [threading.Thread(target=ask, args=(run_id,)) for run_id in ids]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert got == {run_id: texts[run_id] for run_id in ids}
            assert platform_client.requests[2] == mock.over_limit > 0
        answered_wait = mock.arrivals[5]
        first_wave = [at for at in mock.arrivals if at < answered_wait + 0.9]
        assert len(first_wave) <= 12  # those that were under way already, and no second try


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_read_as_seconds_and_as_a_date(source: LocalServer, dated: bool) -> None:
    """HTTP allows both forms."""
    clock = Clock()
    with platform(source.url, faults=Faults(limited=1.0)) as mock:
        mock.arrivals += [0.0] * (not dated)  # every second one has a date

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            mock.faults = Faults()

        with closing(client(mock.url, rate_limiter=RateLimiter(0, sleep=sleep, clock=clock))) as platform_client:
            assert platform_client.runs().items
    assert 0 < sum(clock.slept) <= 2.0


def test_the_rate_limit_holds_in_every_window() -> None:
    """In real time, any ten seconds have at most a sixth of a minute's requests, on all threads together."""
    halted = threading.Event()
    limiter = RateLimiter(600, sleep=lambda seconds: halted.wait(seconds) and None)
    taken: list[float] = []
    lock = threading.Lock()

    def work() -> None:
        while limiter.acquire(halted.is_set):
            with lock:
                taken.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(4)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    while time.monotonic() - begun < 10.6:
        time.sleep(0.01)
    halted.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    first = [at for at in taken if at - begun < 9.9]
    assert len(first) == 100
    assert 100 < len(taken) <= 200
    assert all(later - earlier >= 9.99 for earlier, later in zip(taken, taken[100:], strict=False))


def test_a_key_that_is_replaced_while_it_runs_is_read_again(source: LocalServer, texts: dict[str, bytes]) -> None:
    """The old key is refused once, and the new one is used; without a new one the error is raised."""
    keys = iter(["old", "new", "new", "new"])
    with (
        platform(source.url, keys={"new"}) as mock,
        closing(client(mock.url, key=lambda: next(keys))) as platform_client,
    ):
        assert platform_client.document(next(iter(texts)))
        mock.keys = {"another"}
        with pytest.raises(Unauthorized, match="set THE_KEY"):
            platform_client.runs()


def test_permanent_failures_have_their_own_errors(source: LocalServer, texts: dict[str, bytes]) -> None:
    """A missing run and an invalid cursor are not retried."""
    run_id = next(iter(texts))
    with platform(source.url, vanished={run_id}) as mock, closing(client(mock.url)) as platform_client:
        with pytest.raises(NotFound):
            platform_client.document(run_id)
        assert platform_client.unanswered_for == 0
        with pytest.raises(QueryError, match="cursor"):
            platform_client.runs(cursor="nonsense")
        assert len(mock.arrivals) == 2
        assert platform_client.unanswered_for > 0  # a gateway may respond so to every request


def scripted(mock: FaultyPlatform, status: int, body: bytes = b"") -> None:
    mock.answer = lambda path, headers: (status, body)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, b'{"success":false,"error":{"code":"FORBIDDEN","message":"runs:read"}}', Forbidden),
        (404, b"<html>not here</html>", BackendRefused),
        (301, b"", BackendRefused),
        (410, b"", BackendRefused),
        (200, b"<html>a page</html>", BackendRefused),
        (200, b'{"success":true}', BackendRefused),
        (200, b'{"success":true,"data":[],"meta":{"hasMore":true}}', BackendRefused),
        (200, b'{"success":true,"data":[{"name":"no id"}]}', BackendRefused),
    ],
)
def test_another_server_is_not_taken_for_the_platform(
    source: LocalServer, status: int, body: bytes, expected: type[RunspanError]
) -> None:
    """Its response is an error, never an empty list."""
    with platform(source.url) as mock, closing(client(mock.url)) as platform_client:
        scripted(mock, status, body)
        with pytest.raises(expected):
            platform_client.runs()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"default backend - 404"),
        (404, b'{"error":{"code":"NOT_FOUND","message":"no deployment"}}'),
        (404, b'{"success":false,"error":{"code":"ROUTE_UNKNOWN","message":"nothing here"}}'),
        (302, b""),
        (401, b"<html>sign in</html>"),
        (403, b"<html>blocked</html>"),
        (410, b""),
        (200, b"<html>Service is being deployed</html>"),
    ],
)
def test_a_gateways_response_for_a_document_is_retried(
    source: LocalServer, texts: dict[str, bytes], status: int, body: bytes
) -> None:
    """It is not the platform's own: no run is missing for it, and the platform counts as unanswered."""
    run_id = next(iter(texts))
    with platform(source.url, gateway=(status, body)) as mock, closing(client(mock.url)) as platform_client:
        with pytest.raises(BackendRefused, match="expected the platform's API"):
            platform_client.document(run_id)
        assert len(mock.arrivals) == QUICK.max_attempts
        assert platform_client.unanswered_for > 0
        assert platform_client.last_error
        mock.gateway = None
        assert platform_client.document(run_id).text == texts[run_id]
        assert platform_client.unanswered_for == 0


def test_a_platform_with_smaller_pages_gets_its_own(source: LocalServer) -> None:
    """Its documentation gives both 200 and 100 as the maximum: if 200 is refused, 100 is used."""
    with platform(source.url) as mock, closing(client(mock.url)) as platform_client:
        real = mock.answer

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            if "limit=200" in path:
                details = [{"field": "limit", "message": "must be at most 100"}]
                fault = {"code": "VALIDATION_ERROR", "message": "Invalid query", "details": details}
                return 400, json.dumps({"success": False, "error": fault}).encode()
            return real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        assert len(all_listed(platform_client)) == 450
        assert [page["limit"] for page in mock.pages_asked()] == ["200", *["100"] * 5]


def test_a_response_has_a_bound(source: LocalServer, texts: dict[str, bytes]) -> None:
    """A larger one is refused while it arrives, and not retried."""
    with closing(client(source.url, max_response_bytes=1000)) as platform_client:
        with pytest.raises(ResponseTooLarge, match="1000 bytes"):
            platform_client.document(next(iter(texts)))
        assert platform_client.requests[0] == 1


def test_a_request_that_waits_ends_when_sending_is_halted(source: LocalServer) -> None:
    """However long the requested delay is."""
    halted = threading.Event()
    limiter = RateLimiter(0, sleep=lambda seconds: halted.wait(seconds) and None)
    limiter.pause(3600)
    with closing(client(source.url, rate_limiter=limiter, halted=halted.is_set)) as platform_client:
        threading.Timer(0.05, halted.set).start()
        with pytest.raises(BackendUnreachable, match="stopped"):
            platform_client.runs()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host:1/", "http://host:1"),
        ("https://host/api/v1", "https://host"),
        ("https://host/prefix/api/v1/", "https://host/prefix"),
    ],
)
def test_a_base_url_may_contain_the_api_path(text: str, expected: str) -> None:
    """The API path is removed."""
    assert parse_api_url("URL", text, key_variable="KEY") == expected


@pytest.mark.parametrize(
    "text", ["host:1", "ftp://host", "http://user:secret@host", "http://host?x=1", "", "http://host:eighty"]
)
def test_an_invalid_base_url_is_refused(text: str) -> None:
    """A login in it is never repeated."""
    with pytest.raises(ConfigError) as caught:
        parse_api_url("URL", text, key_variable="KEY")
    assert "secret" not in str(caught.value)


def test_non_canonical_payloads_are_read_verbatim() -> None:
    """The text of the document is cut out of the response, not serialized again."""
    text = b'{"id":"a","output":{"b":1, "a" :1e400,"b":12.10,"x":"\\ud800"},"error":null}'
    assert read_data(b'{"success":true,"data":' + text + b',"meta":{}}', "{")[0] == text
    assert read_data(b' { "data" : ' + text + b"}", "{")[0] == text
    listing = read_page(b'{"data":[{"id":"a","error":{"message":"\\ud800"}},{"id":5},{"id":"\\ud800"}]}')
    assert [item.run_id for item in listing.items] == ["a"]
    assert len(listing.unusable) == 2


def test_an_id_that_no_run_can_have_is_unusable() -> None:
    """A run with it could not be carried, and states need not store it."""
    ids = ("ä" * 256, "ä" * 256 + "a", "")
    listing = read_page(json.dumps({"data": [{"id": each} for each in ids]}).encode())
    assert [item.run_id for item in listing.items] == ["ä" * 256]
    assert len(listing.unusable) == 2


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_document_that_is_cut_off_is_malformed(cut: int) -> None:
    """Wherever it ends."""
    complete = b'{"success":true,"data":{"id":"run_1","status":"completed","steps":[]}}'
    with pytest.raises(MalformedResponse):
        read_data(complete[:cut], "{")
