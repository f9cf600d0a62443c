"""The HTML pages and the login: templates whose scripts use the REST API as any other client does."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import quote

from flask import Blueprint, Response, render_template, request
from werkzeug.exceptions import NotFound

from runspan.errors import RunspanError, StateUnreachable, StoreError, Unauthorized, error_status
from runspan.web.api_keys import RUNS_READ, ApiKey, ApiKeyStore
from runspan.web.auth import is_same_origin
from runspan.web.content_coding import encode_response, negotiate
from runspan.web.errors import JSON, error_response, retry_after_header, without_place
from runspan.web.limits import enter
from runspan.web.links import local_target
from runspan.web.middleware import LIST_PATH, utf8_path
from runspan.web.pages.assets import load_assets, packed
from runspan.web.request import AppContext, current_context
from runspan.web.sessions import SessionCookie

logger = logging.getLogger("runspan.login")

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types runspan",
    )
)
"""No inline scripts or styles and no ``eval``; browsers refuse to turn strings into markup."""

PAGE_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    # With no-referrer a browser hides the origin from its own server too, and a login would look cross-site.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

ASSET_HEADERS: Final = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Vary": "Accept-Encoding",
}

HTML: Final = "text/html; charset=utf-8"
_API_PREFIXES: Final = ("/api/", "/v1/", "/pages/", "/static/")
_TITLES: Final = {
    403: "You are not allowed to read runs here",
    404: "There is no such page",
    429: "Too many requests",
    503: "The backend does not answer",
}
_STATE_TITLE: Final = "The database with the API keys does not answer"
_UNESCAPED: Final = "!~*'()"
"""What ``encodeURIComponent`` leaves beside what ``quote`` does."""
_MAX_KEY_LENGTH: Final = 200
_MAX_FORM_BYTES: Final = 20_000

pages = Blueprint("pages", __name__, template_folder="templates")
"""The pages and their static files."""

login = Blueprint("login", __name__)
"""Login and logout, for a server with API keys. While no key exists, reading requires no login."""


@pages.before_request
def require_read() -> None:
    """Render a page only for a browser that may read runs. Static files and runbooks are the same for everybody."""
    if request.endpoint not in ("pages.static", "pages.runbooks"):
        current_context().authenticator.authorize(request.environ, RUNS_READ)


@pages.errorhandler(Unauthorized)
def redirect_to_login(error: Unauthorized) -> Response:
    """Redirect to the login, if there is one."""
    context = current_context()
    if context.session_cookie is None:
        return render_error(error)
    path: str = request.environ.get("REQUEST_URI", "")  # as the browser wrote it, but for a proxy's prefix
    return _redirect(context.public_url.login_path(path if path.startswith("/") else "/"))


@pages.errorhandler(RunspanError)
def render_error(error: RunspanError) -> Response:
    """Render an error for people."""
    code, status, _ = error_status(error)
    title = _STATE_TITLE if isinstance(error, StateUnreachable) else _TITLES.get(status, "Something went wrong")
    shown = error
    if isinstance(error, StoreError):
        logger.error("%s %r: %s", request.method, request.path, error)
        shown = without_place(error)
    response = _render("error.html", status, code=code, title=title, message=str(shown))
    response.headers.extend(retry_after_header(error))
    return response


@pages.get("/")
def runs() -> Response:
    preload = () if request.query_string else (LIST_PATH,)
    return _encoded(_render("runs.html", entry="panel/main.js", preload=preload))


@pages.get("/runs/<run_id:run_id>")
def run(run_id: str) -> Response:
    utf8_path(request.environ)
    return _render("run.html", entry="run/main.js", preload=_run_paths(run_id), run_id=run_id)


@pages.get("/workflows")
def workflows() -> Response:
    return _encoded(_render("workflows.html", entry="workflows/main.js"))


@pages.get("/workflows/<run_id:workflow_id>")
def workflow(workflow_id: str) -> Response:
    utf8_path(request.environ)
    return _render("workflow.html", entry="workflow/main.js", workflow_id=workflow_id)


@pages.get("/compare")
def compare() -> Response:
    return _render("compare.html", entry="compare/main.js", preload=_run_paths(*map(request.args.get, "ab")))


@pages.get("/runbooks")
def runbooks() -> Response:
    return _encoded(_render("runbooks.html"))


@pages.get("/static/<version>/<path:name>")
def static(version: str, name: str) -> Response:
    assets = load_assets()
    asset = assets.files.get(name)
    if asset is None or version != assets.version:
        raise NotFound("no such file of this version; load the page again")
    response = Response(asset.body, headers=ASSET_HEADERS, content_type=asset.content_type)
    coding = negotiate(request.headers.get("Accept-Encoding")).coding
    body = packed(name, coding.name) if coding is not None else b""
    if coding is not None and body:
        response.data = body
        response.headers["Content-Encoding"] = coding.name
    return response


@pages.app_errorhandler(404)
def not_found(error: NotFound) -> Response:
    """Render a page for people who mistyped an address; programs get the API's error."""
    wants_html = request.accept_mimetypes.best_match((JSON, "text/html")) == "text/html"
    if not wants_html or request.path.startswith(_API_PREFIXES):
        return error_response(404, "NOT_FOUND", error.description or error.name)
    message = f"Nothing is at {request.path}. To open a run, type its id above."
    return _render("error.html", 404, code="NOT_FOUND", title=_TITLES[404], message=message)


@login.errorhandler(StoreError)
def no_session(error: StoreError) -> Response:
    """Say on the form why no session can be stored."""
    logger.error("login: %s", error)
    response = _login_form(error_status(error).http_status, f"You cannot log in now: {error.message}. {error.hint}.")
    response.headers.extend(retry_after_header(error))
    return response


@login.get("/login")
def show_login() -> Response:
    context, keys, cookie = _login_context()
    if keys.unused or cookie.find_key(request.environ) is not None:
        return _redirect(context.public_url.root_path + local_target(request.args.get("next", "/")))
    return _login_form()


@login.post("/login")
def log_in() -> Response:
    """Exchange an API key for a session."""
    enter(request.environ, None)
    context, keys, cookie = _login_context()
    request.max_content_length = _MAX_FORM_BYTES
    if not is_same_origin(request.environ, context.public_url.origin):
        return _login_form(403, "This login was sent by another site and ignored. Log in here.")
    address = request.remote_addr or ""
    retry_after = context.failed_logins.retry_after(address)
    if retry_after:
        response = _login_form(429, f"Too many wrong keys came from your address. Try again in {retry_after} seconds.")
        response.headers["Retry-After"] = str(retry_after)
        return response
    secret = request.form.get("key", "").strip()
    key = keys.find(secret) if 0 < len(secret) <= _MAX_KEY_LENGTH else None
    if key is None:
        context.failed_logins.record(address)
        logger.warning("a login from %s with an unknown, expired or revoked key", address)
        return _login_form(
            401,
            "This key is unknown, expired or revoked. The command runspan keys list shows those that are active.",
        )
    if RUNS_READ not in key.permissions:
        return _login_form(403, f"Key {key.id} is not allowed to read runs. Use one with the permission {RUNS_READ}.")
    response = _redirect(context.public_url.root_path + local_target(request.form.get("next", "/")))
    cookie.start_session(key, response, request.environ)
    logger.info("a login with key %s from %s", key.id, address)
    return response


@login.post("/logout")
def log_out() -> Response:
    enter(request.environ, None)
    context, _, cookie = _login_context()
    response = _redirect(context.public_url.login_path("/"))
    if is_same_origin(request.environ, context.public_url.origin):
        cookie.end_session(response, request.environ)
    return response


def _login_context() -> tuple[AppContext, ApiKeyStore, SessionCookie]:
    """Return the context, with the keys and the cookie that exist wherever the login is registered."""
    context = current_context()
    return context, cast("ApiKeyStore", context.api_keys), cast("SessionCookie", context.session_cookie)


def _login_form(status: int = 200, problem: str = "") -> Response:
    target = local_target(request.values.get("next", "/"))
    return _render("login.html", status, next=target, problem=problem)


def _run_paths(*run_ids: str | None) -> list[str]:
    """Return the API paths of runs as the script ``api.js`` writes them; none of an id that no URL can hold."""
    return [
        f"{LIST_PATH}/{quote(run_id, safe=_UNESCAPED)}" for run_id in run_ids if run_id and run_id not in (".", "..")
    ]


def _render(
    template: str, status: int = 200, entry: str = "shell.js", preload: Iterable[str] = (), **values: Any
) -> Response:
    """Return a page.

    ``entry``: the script that it starts with. ``preload``: paths of the API that the script fetches first; the browser
    does so while it loads the script.
    """
    context = current_context()
    assets = load_assets()
    root = context.public_url.root_path
    text = render_template(
        template,
        root=root,
        static=f"{root}/static/{assets.version}",
        entry=entry,
        preload=preload,
        backend=context.config.backend,
        login=_session_key(),
        writes=context.writer is not None,
        searches=context.reader.capabilities.searches,
        **values,
    )
    return Response(text, status, PAGE_HEADERS, content_type=HTML)


def _encoded(page: Response) -> Response:
    """Apply the content coding that the client asks for to a page that repeats nothing of the request."""
    encode_response(page, request.headers.get("Accept-Encoding"))
    return page


def _session_key() -> ApiKey | None:
    """Return the key of the browser's session. A page that says that sessions cannot be read is shown without one."""
    cookie = current_context().session_cookie
    with suppress(StoreError):
        return cookie.find_key(request.environ) if cookie else None
    return None


def _redirect(path: str) -> Response:
    return Response(status=303, headers={**PAGE_HEADERS, "Location": path}, content_type=HTML)
