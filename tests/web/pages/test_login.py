"""Logging in with an API key in Chromium, and what the session's cookie can and cannot do."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from runspan.backends.sqlite import SqliteStore
from runspan.errors import ConfigError, StoreFull
from runspan.storage.data_directory import SESSIONS_FILE
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from runspan.web.links import PublicUrl, local_target
from runspan.web.sessions import SessionStore
from support.cli import process, runspan, server
from support.states import State
from support.web import serving
from web.pages.chromium import NAMED, Watch
from web.pages.kit import fill, run

HOUR = 3600 * 1_000_000_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a run of acme and one of another company."""
    fill(tmp_path, [run("run_acme", datetime.now(UTC))], tenant="acme")
    fill(tmp_path, [run("run_other", datetime.now(UTC))], tenant="other")
    return tmp_path


def make_key(data: Path, *options: str) -> tuple[str, str]:
    """A key of acme: its secret and its id."""
    made = runspan("keys", "create", "--data", data, "--name", "ana", "--tenant", "acme", "--json", *options)
    key = json.loads(made.stdout)
    return key["key"], key["id"]


def log_in(page: Page, secret: str) -> None:
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Log in").click()


def log_out(page: Page, watch: Watch) -> None:
    """Ends the session. A request that the panel still has under way may end with 401, which the browser logs."""
    watch.allow("status of 401")
    page.get_by_role("button", name=re.compile("Log out")).click()


def test_a_login_leads_to_the_page_that_was_asked_for(page: Page, watch: Watch, data: Path) -> None:
    """Without a session every page leads to the login, and the login back; then the key's own runs are there."""
    secret, _ = make_key(data, "--permission", "runs:read")
    with server(data) as (url, _):
        page.goto(f"{url}/?status=completed")
        expect(page).to_have_url(f"{url}/login?next=/%3Fstatus%3Dcompleted")
        log_in(page, secret)
        expect(page).to_have_url(f"{url}/?status=completed")
        expect(page.locator("table.runs tbody tr")).to_have_count(1)
        expect(page.get_by_text("run_acme")).to_be_visible()
        page.get_by_text("run_acme").click()
        expect(page).to_have_url(f"{url}/runs/run_acme")

        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] is True
        assert cookie["sameSite"] == "Strict"
        assert cookie["path"] == "/"
        assert 11.9 * 3600 < cookie["expires"] - datetime.now(UTC).timestamp() < 12.1 * 3600
        held = json.dumps(page.context.storage_state()) + str(page.evaluate("document.cookie"))
        assert secret not in held
        assert secret.removeprefix("wfk_") not in held
        assert page.evaluate("document.cookie") == ""

        log_out(page, watch)
        expect(page).to_have_url(f"{url}/login")
        assert page.context.cookies() == []
        old = httpx.get(
            f"{url}/api/v1/runs", headers={"Cookie": f"{cookie['name']}={cookie['value']}"}, trust_env=False
        )
        assert old.status_code == 401


def test_a_login_leads_to_the_step_that_was_asked_for(page: Page, data: Path) -> None:
    """The step is in the fragment of the address, which the server does not see."""
    secret, _ = make_key(data, "--permission", "runs:read")
    with server(data) as (url, _):
        page.goto(f"{url}/runs/run_acme#view=timeline&step=fetch")
        expect(page).to_have_url(re.compile("/login.*#view=timeline&step=fetch$"))
        log_in(page, secret)
        expect(page).to_have_url(f"{url}/runs/run_acme#view=timeline&step=fetch")
        expect(page.locator("#view-timeline")).to_be_visible()


def test_a_wrong_key_is_told_and_counted(page: Page, watch: Watch, data: Path) -> None:
    """The form says what is wrong; after some wrong keys it says how long to wait, and takes no right one meanwhile."""
    watch.allow("status of 4(01|29)")
    secret, _ = make_key(data)
    with server(data) as (url, running):
        page.goto(url)
        log_in(page, "wfk_" + "x" * 32)
        expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
        expect(page.get_by_label("API key")).to_have_attribute("aria-invalid", "true")
        with httpx.Client(base_url=url, trust_env=False) as client:
            for _ in range(19):
                assert client.post("/login", data={"key": "wfk_wrong"}).status_code == 401
            refused = client.post("/login", data={"key": secret})
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 60
        log_in(page, secret)
        expect(page.get_by_role("alert")).to_contain_text("Too many wrong keys")
        running.end()
        log = "".join(running.lines)
    assert secret not in log
    assert "wfk_" not in log
    assert "a login from 127.0.0.1 with an unknown, expired or revoked key" in log


def test_revoking_the_key_ends_its_sessions_at_once(page: Page, watch: Watch, data: Path) -> None:
    """Another process revokes the key: the open panel finds itself logged out with its next question."""
    watch.allow("status of 401")
    secret, key_id = make_key(data)
    with server(data) as (url, _):
        page.goto(url)
        log_in(page, secret)
        expect(page.get_by_text("run_acme")).to_be_visible()
        process("keys", "revoke", "--data", data, key_id)
        page.get_by_role("button", name="Refresh").click()
        expect(page).to_have_url(f"{url}/login")


def test_a_session_is_remembered_over_a_restart(page: Page, data: Path) -> None:
    """Sessions are rows of a file that only its owner reads; the file holds neither token nor key."""
    secret, _ = make_key(data)
    with server(data) as (url, running):
        page.goto(url)
        log_in(page, secret)
        expect(page.get_by_text("run_acme")).to_be_visible()
        port = url.rpartition(":")[2]
        running.end()
    file = data / SESSIONS_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (cookie,) = page.context.cookies()
    assert cookie["value"].encode() not in file.read_bytes()
    assert secret.encode() not in file.read_bytes()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    with server(data, "--port", port) as (again, _):
        page.goto(again)
        expect(page.get_by_text("run_acme")).to_be_visible()


def test_a_login_over_plain_http_under_a_name(page: Page, watch: Watch, data: Path) -> None:
    """There a browser tells no ``Sec-Fetch-Site``: the form's own origin is all that says where it stands."""
    watch.allow(f"asked for http://{NAMED}:|Cross-Origin-Opener-Policy header has been ignored")
    secret, _ = make_key(data)
    with server(data) as (url, _):
        address = url.replace("127.0.0.1", NAMED)
        page.goto(address)
        log_in(page, secret)
        expect(page).to_have_url(f"{address}/")
        expect(page.get_by_text("run_acme")).to_be_visible()
        log_out(page, watch)
        expect(page).to_have_url(f"{address}/login")
        assert page.context.cookies() == []


def test_without_keys_nobody_logs_in(page: Page, tmp_path: Path) -> None:
    """An open server shows its runs, and its login page leads there."""
    with server(tmp_path) as (url, _):
        page.goto(f"{url}/login?next=/compare")
        expect(page).to_have_url(f"{url}/compare")
        expect(page.get_by_role("button", name=re.compile("Log out"))).to_have_count(0)


# Without a browser, for what a browser would not send.


class Clock:
    """A clock that the test sets."""

    now = 1_700_000_000 * 1_000_000_000

    def __call__(self) -> int:
        return self.now


class Site:
    """A server with keys. login() gives a client with a session."""

    def __init__(self, app: Flask, client: httpx.Client, keys: ApiKeyStore, clock: Clock) -> None:
        self.app, self.client, self.keys, self.clock = app, client, keys, clock

    def login(self, secret: str, **headers: str) -> httpx.Response:
        return self.client.post("/login", data={"key": secret, "next": "/compare"}, headers=headers)


@pytest.fixture
def site(state: State, tmp_path: Path) -> Iterator[Site]:
    clock = Clock()
    keys = state.keys(clock)
    sessions = state.sessions(keys, clock)
    with SqliteStore(tmp_path / "data") as store:
        app = create_app(store, store, keys=keys, sessions=sessions, windows=state.windows(), clock=clock)
        with serving(app) as client:
            yield Site(app, client, keys, clock)


def test_a_session_of_a_clock_that_was_ahead_ends_when_it_is_set_back(site: Site) -> None:
    """Otherwise it would last until that clock, and not for its twelve hours."""
    secret, _ = site.keys.create("reader")
    site.clock.now += 40 * 86_400 * 1_000_000_000
    site.login(secret)
    assert site.client.get("/api/v1/runs").status_code == 200
    site.clock.now -= 1_000_000_000
    assert site.client.get("/api/v1/runs").status_code == 200, "clocks are set back a little all the time"
    site.clock.now -= 40 * 86_400 * 1_000_000_000
    assert site.client.get("/api/v1/runs").status_code == 401


def test_a_cookie_reads_and_never_writes(site: Site) -> None:
    """With a key that may do everything, a session reads; to push, to send spans or to delete it is nobody."""
    secret, _ = site.keys.create("both")
    assert site.login(secret).headers["Location"] == "/compare"
    assert site.client.get("/api/v1/runs").status_code == 200
    assert site.client.get("/").status_code == 200
    assert site.client.post("/api/v1/runs", json=run("run_1", datetime.now(UTC))).status_code == 401
    assert site.client.post("/v1/traces", json={"resourceSpans": []}).status_code == 401
    assert site.client.post(
        "/api/v1/runs", json=run("run_1", datetime.now(UTC)), headers={"x-api-key": secret}
    ).is_success


def test_a_wrong_key_in_the_header_is_not_saved_by_a_cookie(site: Site) -> None:
    """Whoever sends a key is judged by it."""
    secret, _ = site.keys.create("a")
    site.login(secret)
    assert site.client.get("/api/v1/runs", headers={"x-api-key": "wfk_wrong"}).status_code == 401


def test_a_session_ends_with_its_time_and_with_its_key(site: Site) -> None:
    """Twelve hours, or as long as the key is valid when that is shorter; and the cookie says so."""
    secret, _ = site.keys.create("long")
    assert "Max-Age=43200" in site.login(secret).headers["Set-Cookie"]
    site.clock.now += 12 * HOUR - 1
    assert site.client.get("/api/v1/runs").status_code == 200
    site.clock.now += 1
    assert site.client.get("/api/v1/runs").status_code == 401
    short, _ = site.keys.create("short", expires=site.clock.now + HOUR)
    assert "Max-Age=3600" in site.login(short).headers["Set-Cookie"]
    site.clock.now += HOUR
    assert site.client.get("/api/v1/runs").status_code == 401


def test_a_key_that_may_not_read_cannot_log_in(site: Site) -> None:
    """The answer names the permission that it lacks."""
    secret, _ = site.keys.create("writer", permissions=["runs:write"])
    refused = site.login(secret)
    assert refused.status_code == 403
    assert "runs:read" in refused.text
    assert "Set-Cookie" not in refused.headers


def test_requests_of_programs_are_refused_and_pages_lead_to_the_login(site: Site) -> None:
    """/api answers 401 as it does without pages; a page answers with the way to the login, which keeps the query."""
    site.keys.create("any")
    assert site.client.get("/api/v1/runs").status_code == 401
    assert site.client.get("/pages/spread").status_code == 401
    asked = site.client.get("/runs/a%2Fb?tab=x&y=1")
    assert asked.status_code == 303
    assert asked.headers["Location"] == "/login?next=/runs/a%252Fb%3Ftab%3Dx%26y%3D1"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
    ids=str,
)
def test_another_site_can_neither_log_in_nor_out(site: Site, headers: dict[str, str]) -> None:
    """A form elsewhere could log a person in as somebody else, who would then see what is looked at."""
    secret, _ = site.keys.create("a")
    refused = site.login(secret, **headers)
    assert refused.status_code == 403
    assert "Set-Cookie" not in refused.headers
    assert site.login(secret).status_code == 303
    site.client.post("/logout", headers=headers)
    assert site.client.get("/api/v1/runs").status_code == 200
    site.client.post("/logout")
    assert site.client.get("/api/v1/runs").status_code == 401


def test_wrong_keys_are_counted_by_who_sent_them(site: Site) -> None:
    """Behind a proxy that is trusted, its clients are apart: one of them cannot keep the others from logging in."""
    secret, _ = site.keys.create("a")
    with serving(site.app, trusted_proxy="127.0.0.1") as client:

        def status(forwarded: str, key: str) -> int:
            return client.post("/login", data={"key": key}, headers={"X-Forwarded-For": forwarded}).status_code

        assert {status(f"192.0.2.{number}, 198.51.100.1", "wfk_wrong") for number in range(20)} == {401}
        assert status("198.51.100.1", secret) == 429
        assert status("198.51.100.2", secret) == 303
        assert status("2001:db8::1", secret) == 303
    with serving(site.app, trusted_proxy="192.0.2.1") as client:
        assert {status(f"203.0.113.{number}", "wfk_wrong") for number in range(20)} == {401}
        assert status("203.0.113.99", secret) == 429


TARGETS = [
    "//evil.example",
    "/\\evil.example",
    "https://evil.example",
    "/\t/evil.example",
    "javascript:alert(1)",
    "",
    "runs",
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_login_leads_nowhere_else(site: Site, target: str) -> None:
    """What is no path of this server leads to the runs."""
    secret, _ = site.keys.create("a")
    done = site.client.post("/login", data={"key": secret, "next": target})
    assert done.headers["Location"] == "/"
    assert site.client.get("/login", params={"next": target}).headers["Location"] == "/"
    assert local_target(target) == "/"


def test_behind_tls_the_cookie_travels_over_tls_only(tmp_path: Path) -> None:
    """A public URL with https makes the cookie Secure and its name one that no neighbour can set; a path is kept."""
    keys = ApiKeyStore(tmp_path / "keys")
    secret, _ = keys.create("a")
    with SqliteStore(tmp_path / "data") as store:
        for public, cookie, target in (
            ("https://runs.example.com", "__Host-runspan=", "/compare"),
            ("https://example.com/runspan/", "runspan=", "/runspan/compare"),
        ):
            settings = WebConfig(public_url=public)
            with serving(create_app(store, store, keys=keys, config=settings)) as client:
                headers = {"Origin": public.rstrip("/").removesuffix("/runspan")}
                done = client.post("/login", data={"key": secret, "next": "/compare"}, headers=headers)
                assert done.headers["Location"] == target
                sent = done.headers["Set-Cookie"]
                assert sent.startswith(cookie)
                assert {"Secure", "HttpOnly", "SameSite=Strict"} <= set(sent.split("; "))
                assert f"Path={PublicUrl(public).root_path or '/'}" in sent
                name, value = sent.partition(";")[0].split("=", 1)
                page = client.get("/", headers={"Cookie": f"{name}={value}"})
                assert f'data-root="{PublicUrl(public).root_path}"' in page.text
    keys.close()


@pytest.mark.parametrize(
    "url", ["runs.example.com", "ftp://a", "https://", "https://u:p@a", "https://a/?b", "https://a/\r\nb"]
)
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    """The server does not start with an address that no browser could use."""
    with pytest.raises(ConfigError, match=r"https://runs\.example\.com"):
        PublicUrl(url)


def test_two_servers_on_one_machine_do_not_log_each_other_out(site: Site) -> None:
    """Browsers keep cookies by host alone, so the cookie's name has the port in it."""
    secret, _ = site.keys.create("a")
    name = site.login(secret).headers["Set-Cookie"].partition("=")[0]
    assert name == f"runspan-{site.client.base_url.port}"


def test_a_login_ends_the_session_that_the_browser_had(site: Site) -> None:
    """A token that somebody planted in the browser is worth nothing after the login."""
    secret, _ = site.keys.create("a")
    site.login(secret)
    (old,) = site.client.cookies.jar
    site.client.get("/")
    site.client.post("/login", data={"key": secret})
    site.client.cookies.clear()
    assert site.client.get("/api/v1/runs", headers={"Cookie": f"{old.name}={old.value}"}).status_code == 401


def test_odd_forms_are_refused(site: Site) -> None:
    """A form that is too long, or text in another encoding, is an error and no failure of the server."""
    site.keys.create("a")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert site.client.post("/login", content=b"key=" + b"x" * 50_000, headers=form).status_code == 413
    assert site.client.post("/login", content=b"key=%ff%fe&next=%00", headers=form).status_code == 401
    assert site.client.post("/login", content=b"").status_code == 401
    for cookie in ("x" * 5000, '"%ff', "a=b;" * 100):
        name = f"runspan-{site.client.base_url.port}"
        assert site.client.get("/api/v1/runs", headers={"Cookie": f"{name}={cookie}"}).status_code == 401


def test_a_page_does_not_show_where_the_files_are(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sessions that cannot be read are an error of the page, whose path only the log has."""

    def fail(self: SessionStore, token: str) -> None:
        raise StoreFull("the disk is full", where="/srv/runspan/sessions.sqlite3", hint="free space")

    secret, _ = site.keys.create("a")
    site.login(secret)
    monkeypatch.setattr(SessionStore, "find_key", fail)
    page = site.client.get("/")
    assert page.status_code == 507
    assert "the disk is full (free space)" in page.text
    assert "/srv" not in page.text
    assert "GET '/': /srv/runspan/sessions.sqlite3: the disk is full" in caplog.text
