"""The session's cookie: what it is called, what it may do, and whose key a request with it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flask import Response
from werkzeug.http import parse_cookie

from runspan.web.keys import Key
from runspan.web.pages.places import Places
from runspan.web.pages.sessions import Sessions

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

NAME: Final = "runspan"
_READS: Final = frozenset({"GET", "HEAD"})


class Cookies:
    """The cookies of one application. They open what is read and nothing that is written, whatever the key may do."""

    def __init__(self, sessions: Sessions, places: Places) -> None:
        self._sessions = sessions
        self._places = places

    def key_of(self, environ: WSGIEnvironment) -> Key | None:
        """The key behind a request that only reads, or None."""
        if environ["REQUEST_METHOD"] not in _READS:
            return None
        token = self._token(environ)
        return self._sessions.key_of(token) if token else None

    def begin(self, key: Key, response: Response, environ: WSGIEnvironment) -> None:
        """Starts a session of the key, in place of the one that the browser may have."""
        self.end(response, environ)
        token, seconds = self._sessions.begin(key)
        self._set(response, environ, token, seconds)

    def end(self, response: Response, environ: WSGIEnvironment) -> None:
        """Ends the browser's session, here and there."""
        token = self._token(environ)
        if token:
            self._sessions.end(token)
        response.headers.remove("Set-Cookie")
        self._set(response, environ, "", 0)

    def _set(self, response: Response, environ: WSGIEnvironment, token: str, seconds: int) -> None:
        response.headers.remove("Set-Cookie")
        response.set_cookie(
            self._name(environ),
            token,
            max_age=seconds,
            path=self._places.root or "/",
            secure=self._places.secure,
            httponly=True,
            samesite="Strict",
        )

    def _token(self, environ: WSGIEnvironment) -> str:
        header = environ.get("HTTP_COOKIE", "")
        return parse_cookie(header).get(self._name(environ), "") if header else ""

    def _name(self, environ: WSGIEnvironment) -> str:
        """Cookies are kept by host without its port: two servers on one machine must not log each other out.

        ``__Host-`` lets no neighbouring subdomain set it; a browser takes that only over TLS and for the whole host.
        """
        if self._places.secure:
            return NAME if self._places.root else f"__Host-{NAME}"
        port = environ.get("HTTP_HOST", "").rpartition(":")[2]
        return f"{NAME}-{port}" if port.isdigit() else NAME
