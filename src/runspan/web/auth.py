"""Who may do what, and how often: keys to callers, permissions and rate limits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flask import Request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from runspan.errors import Forbidden, RateLimited, Unauthorized
from runspan.web.api_keys import RUNS_READ, RUNS_WRITE, ApiKey, ApiKeyStore
from runspan.web.config import WebConfig
from runspan.web.origin_guard import OriginGuard
from runspan.web.public_url import PublicUrl

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

TRACES = "traces"
"""The kind of request that ``/v1/traces`` counts as; see ``WebSettings.traces_per_minute``."""


PRINCIPAL_KEY = "runspan.admitted"
"""In the environment of a request for a run by id: the caller, once admitted, so that it is counted once."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a request. tenant: whose runs it sees; keyed: whether it is bound to that tenant by a key."""

    tenant: str = ""
    keyed: bool = False


class Logins(Protocol):
    """Browsers that logged in with a key."""

    def key_of(self, environ: WSGIEnvironment) -> ApiKey | None:
        """The active key behind a request that only reads, or None."""
        ...


class Authenticator:
    """Admits requests. Without a key ring, or with one that never held a key, everybody may do everything that no other
    site makes a browser do: see ``OpenDoor``.

    logins: may stand in for a key in a request that sends none; only to read, so that no other site can have a browser
    write.
    """

    def __init__(self, keys: ApiKeyStore | None, settings: WebConfig, logins: Logins | None = None) -> None:
        self._keys = keys
        self._logins = logins
        self._door = OriginGuard(settings.allowed_hosts, PublicUrl(settings.public_url).origin)
        self._window: MovingWindowRateLimiter | None = None
        self._keyed = _limits(settings.reads_per_minute, settings.writes_per_minute, settings.traces_per_minute)
        self._open = _limits(settings.open_reads_per_minute, settings.open_writes_per_minute, 0)
        if self._keyed or self._open:
            self._window = MovingWindowRateLimiter(MemoryStorage())

    def authorize(self, request: Request, permission: str, kind: str = "") -> Principal:
        """The caller, if it may. Unauthorized, Forbidden or RateLimited if not.

        kind: what the request counts as, when it is not its permission.
        """
        return self.authorize_environ(request.environ, permission, kind)

    def authorize_environ(self, environ: WSGIEnvironment, permission: str, kind: str = "") -> Principal:
        """The same for a WSGI environment."""
        known: Principal | None = environ.get(PRINCIPAL_KEY)
        if known is not None:
            return known
        keys = self._keys
        secret = _secret(environ)
        key = keys.find(secret) if keys and secret else None
        if key is None and not secret and self._logins is not None and permission == RUNS_READ:
            key = self._logins.key_of(environ)
        if key is None:
            if keys is None or keys.unused:
                self._door.check(environ, writes=permission == RUNS_WRITE)
                self._count(self._open.get(kind or permission), f"address {environ.get('REMOTE_ADDR')}")
                return _ANONYMOUS
            raise Unauthorized(
                "unknown, expired or revoked key" if secret else "no key",
                hint="send a key in the header x-api-key; `runspan keys create` makes one",
            )
        if permission not in key.permissions:
            raise Forbidden(
                where=f"key {key.id}",
                expected=f"the permission {permission}",
                got=", ".join(sorted(key.permissions)),
                hint="use a key that has it",
            )
        self._count(self._keyed.get(kind or permission), f"key {key.id}")
        return Principal(key.company, keyed=True)

    def _count(self, limit: RateLimitItem | None, who: str) -> None:
        if limit is None or self._window is None or self._window.hit(limit, who):
            return
        reset = self._window.get_window_stats(limit, who).reset_time
        raise RateLimited(
            f"more than {limit.amount} requests a minute",
            retry_after=max(1, math.ceil(reset - time.time())),
            hint="wait as long as Retry-After says",
        )


_ANONYMOUS = Principal()


def _limits(reads: int, writes: int, traces: int) -> dict[str, RateLimitItem]:
    named = {RUNS_READ: reads, RUNS_WRITE: writes, TRACES: traces}
    return {
        kind: RateLimitItemPerMinute(amount, namespace=kind.replace(":", "-"))
        for kind, amount in named.items()
        if amount
    }


def _secret(environ: WSGIEnvironment) -> str:
    """The key of a request: ``x-api-key``, else ``Authorization: Bearer``."""
    key: str = environ.get("HTTP_X_API_KEY", "")
    if not key:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        key = token if scheme.lower() == "bearer" else ""
    return key.strip()
