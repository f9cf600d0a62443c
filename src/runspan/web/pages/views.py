"""The routes of the pages: each a frame with a script, which asks the REST API as every other client does.

What a page's headers allow: its own scripts, styles and data, and nothing from anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from flask import Blueprint, Flask, Response, render_template, request
from werkzeug.exceptions import NotFound

from runspan.errors import NotFound as NoSuchRun
from runspan.errors import RunspanError, Unauthorized, error_status
from runspan.web.api_keys import RUNS_READ
from runspan.web.app_context import AppContext
from runspan.web.auth import Authenticator
from runspan.web.errors import JSON, error_response
from runspan.web.pages.assets import Assets, load_assets
from runspan.web.public_url import PublicUrl
from runspan.web.sessions import SessionCookie

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
"""No inline script or style and no ``eval``; text never becomes markup, for the browser refuses strings there."""

PAGE_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    # With no-referrer a browser hides the page's origin from its own server too, and the login's form looks strange.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

ASSET_HEADERS: Final = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Vary": "Accept-Encoding",
}


HTML: Final = "text/html; charset=utf-8"
_FOR_PROGRAMS: Final = ("/api/", "/v1/", "/pages/", "/static/")


class PageRenderer:
    """What all pages of one application share. cookies: None where no key can be asked for."""

    def __init__(self, parts: AppContext, places: PublicUrl, cookies: SessionCookie | None) -> None:
        self.parts = parts
        self.access: Authenticator = parts.access
        self.places = places
        self.cookies = cookies
        self.assets: Assets = load_assets()

    def render(self, template: str, status: int = 200, entry: str = "shell.js", **values: Any) -> Response:
        """A page from a template of this package. entry: the module that it starts with."""
        key = self.cookies.key_of(request.environ) if self.cookies else None
        root = self.places.root
        text = render_template(
            template,
            root=root,
            static=f"{root}/static/{self.assets.version}",
            modules=self.modules(entry),
            backend=self.parts.settings.backend,
            login=key,
            writes=self.parts.writer is not None,
            **values,
        )
        return Response(text, status, PAGE_HEADERS, content_type=HTML)

    @cache  # noqa: B019  # a frame lives as long as its application
    def modules(self, entry: str) -> list[str]:
        """What the browser may fetch ahead for this module."""
        return self.assets.modules(entry)

    def redirect(self, path: str) -> Response:
        """Sends a browser to a path of this server, with GET."""
        return Response(status=303, headers={**PAGE_HEADERS, "Location": path}, content_type=HTML)

    def guarded(self, view: Callable[..., Response]) -> Callable[..., Response]:
        """The view for those who may read runs; others are sent to log in. What goes wrong is told as a page."""

        def guarded_view(**arguments: str) -> Response:
            try:
                self.access.authorize(request, RUNS_READ)
                return view(**arguments)
            except Unauthorized as error:
                if self.cookies is None:
                    return self.refusal(error)
                return self.redirect(self.places.login(_asked()))
            except RunspanError as error:
                return self.refusal(error)

        return guarded_view

    def refusal(self, error: RunspanError) -> Response:
        """The page of an error."""
        code, status, _ = error_status(error)
        response = self.render(
            "error.html", status, code=code, title=_TITLES.get(status, "Something failed"), message=str(error)
        )
        retry_after = getattr(error, "retry_after", None)
        if retry_after is not None:
            response.headers["Retry-After"] = str(int(retry_after))
        return response


def add_pages(app: Flask, frame: PageRenderer) -> None:
    """``/``, ``/runs/{id}``, ``/compare`` and the static files."""
    pages = Blueprint("pages", __name__, template_folder="templates")

    @frame.guarded
    def runs() -> Response:
        return frame.render("runs.html", entry="panel/main.js")

    @frame.guarded
    def run(run_id: str) -> Response:
        _refuse_other_encodings()
        return frame.render("run.html", entry="run/main.js", run_id=run_id)

    @frame.guarded
    def compare() -> Response:
        return frame.render("compare.html", entry="compare/main.js")

    def static(version: str, name: str) -> Response:
        asset = frame.assets.files.get(name)
        if asset is None or version != frame.assets.version:
            raise NotFound("no such file of this version; load the page again")
        response = Response(asset.body, headers=ASSET_HEADERS, content_type=asset.content_type)
        if asset.packed and request.accept_encodings["gzip"] > 0:
            response.data = asset.packed
            response.headers["Content-Encoding"] = "gzip"
        return response

    def not_found(error: NotFound) -> Response:
        people = request.accept_mimetypes.best_match((JSON, "text/html")) == "text/html"
        if not people or request.path.startswith(_FOR_PROGRAMS):
            return error_response(404, "NOT_FOUND", error.description or error.name)
        message = f"Nothing is at {request.path}. To open a run, type its id above."
        return frame.render("error.html", 404, code="NOT_FOUND", title=_TITLES[404], message=message)

    app.register_error_handler(404, not_found)
    pages.add_url_rule("/", "runs", runs)
    pages.add_url_rule("/runs/<run_id:run_id>", "run", run)
    pages.add_url_rule("/compare", "compare", compare)
    pages.add_url_rule("/static/<version>/<path:name>", "static", static)
    app.register_blueprint(pages)


_TITLES: Final = {
    403: "You may not read runs here",
    404: "There is no such page",
    429: "Too many requests",
    503: "The backend does not answer",
}


def _asked() -> str:
    """The path and query of the request as the browser wrote them, without the proxy's prefix."""
    path: str = request.environ.get("REQUEST_URI", "")
    return path if path.startswith("/") else "/"


def _refuse_other_encodings() -> None:
    try:
        request.environ["PATH_INFO"].encode("latin-1").decode()
    except UnicodeError:
        raise NoSuchRun("no such run", expected="a path in UTF-8") from None
