"""``/login`` and ``/logout``: an API key once, then a session; how often a wrong one may be tried."""

from __future__ import annotations

import logging
import math
import time

from flask import Blueprint, Flask, Response, request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from runspan.web.api_keys import RUNS_READ, ApiKeyStore
from runspan.web.origin_guard import is_from_here
from runspan.web.pages.views import PageRenderer
from runspan.web.public_url import local_target
from runspan.web.sessions import SessionCookie

logger = logging.getLogger("runspan.login")

_LONGEST_KEY = 200
_MOST_FORM_BYTES = 20_000


def add_login(app: Flask, frame: PageRenderer, cookies: SessionCookie, keys: ApiKeyStore) -> None:
    """The routes, where the server has a key ring. While it never held a key, everybody may read without a login."""
    pages = Blueprint("login", __name__)
    tries = LoginRateLimit(frame.parts.settings.logins_per_minute)

    def show(status: int = 200, problem: str = "") -> Response:
        target = local_target(request.values.get("next", "/"))
        return frame.render("login.html", status, next=target, problem=problem)

    def login() -> Response:
        if keys.unused or cookies.key_of(request.environ) is not None:
            return frame.redirect(frame.places.root + local_target(request.args.get("next", "/")))
        return show()

    def check() -> Response:
        request.max_content_length = _MOST_FORM_BYTES
        if not is_from_here(request.environ, frame.places.origin):
            return show(403, "This login was sent by another site, so it was not looked at. Log in here.")
        address = request.remote_addr or ""
        wait = tries.wait(address)
        if wait:
            response = show(429, f"Too many wrong keys came from your address. Try again in {wait} seconds.")
            response.headers["Retry-After"] = str(wait)
            return response
        secret = request.form.get("key", "").strip()
        key = keys.find(secret) if 0 < len(secret) <= _LONGEST_KEY else None
        if key is None:
            tries.count(address)
            logger.warning("a login from %s with an unknown, expired or revoked key", address)
            return show(
                401,
                "This key is unknown, expired or revoked. The command runspan keys list shows those that are active.",
            )
        if RUNS_READ not in key.permissions:
            return show(403, f"Key {key.id} may not read runs. Use one with the permission {RUNS_READ}.")
        response = frame.redirect(frame.places.root + local_target(request.form.get("next", "/")))
        cookies.begin(key, response, request.environ)
        logger.info("a login with key %s from %s", key.id, address)
        return response

    def logout() -> Response:
        response = frame.redirect(frame.places.login("/"))
        if is_from_here(request.environ, frame.places.origin):
            cookies.end(response, request.environ)
        return response

    pages.add_url_rule("/login", "login", login)
    pages.add_url_rule("/login", "check", check, methods=["POST"])
    pages.add_url_rule("/logout", "logout", logout, methods=["POST"])
    app.register_blueprint(pages)


class LoginRateLimit:
    """Counts wrong keys by address. per_minute: how many one may send; 0 means any number."""

    def __init__(self, per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(per_minute, namespace="login") if per_minute else None
        self._window = MovingWindowRateLimiter(MemoryStorage())

    def count(self, address: str) -> None:
        """A wrong key came from there."""
        if self._limit is not None:
            self._window.hit(self._limit, address)

    def wait(self, address: str) -> int:
        """How many seconds this address has to wait; 0 when it may try."""
        if self._limit is None or self._window.test(self._limit, address):
            return 0
        return max(1, math.ceil(self._window.get_window_stats(self._limit, address).reset_time - time.time()))
