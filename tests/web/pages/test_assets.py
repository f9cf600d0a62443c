"""The static files: named by their digest, kept for ever, packed, complete, and all of them from this server."""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from runspan.web import pages
from runspan.web.pages.assets import load_assets, modules
from web.pages.chromium import Watch

ROOT = Path(__file__).parents[3]
PLACE = Path(pages.__file__).parent
STATIC = PLACE / "static"
FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())


def test_a_second_visit_loads_nothing_again(page: Page, filled: str) -> None:
    """Files are named by the digest of all, so the browser takes them from its cache without a question."""
    page.goto(filled)
    expect(page.locator("table.runs tbody tr").first).to_be_visible()
    sizes = (
        "performance.getEntriesByType('resource').filter((e) => e.name.includes('/static/')).map((e) => e.transferSize)"
    )
    first = page.evaluate(sizes)
    assert len(first) > 8
    assert all(size > 0 for size in first)
    page.goto(f"{filled}/?status=failed")
    expect(page.locator("table.runs tbody tr").first).to_be_visible()
    assert set(page.evaluate(sizes)) == {0}


def test_files_may_be_kept_for_ever_and_come_packed(filled: str) -> None:
    """Immutable for a year, under a path that changes with their content; gzip for who takes it."""
    with httpx.Client(base_url=f"{filled}/static/{load_assets().version}/", trust_env=False) as client:
        for name in FILES:
            packed = client.get(name, headers={"Accept-Encoding": "gzip"})
            plain = client.get(name, headers={"Accept-Encoding": "identity"})
            assert packed.content == plain.content == (STATIC / name).read_bytes()
            assert packed.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert packed.headers["Vary"] == "Accept-Encoding"
            assert "Content-Encoding" not in plain.headers
            if len(plain.content) > 2000:
                assert packed.headers["Content-Encoding"] == "gzip"


def test_the_runs_panel_is_light(filled: str) -> None:
    """What the first page loads is under 60 KB on the wire: no framework, no font, no picture."""
    assets = load_assets()
    page = httpx.get(filled, trust_env=False).text
    wanted = set(re.findall(rf'/static/{assets.version}/([^"]+)"', page))
    assert {"base.css", "panel/panel.css", "panel/main.js", "dom.js"} <= wanted
    assert sum(len(assets.files[name].gzip_body or assets.files[name].body) for name in wanted) < 60_000


def imports_of(name: str) -> set[str]:
    """The static files that a module imports."""
    paths = re.findall(r'(?:\}\s*from|\bimport)\s*\(?"([^"]+)"', (STATIC / name).read_text())
    return {posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in paths}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_modules_import_only_what_is_there(name: str) -> None:
    """Every import is relative and leads to a file of the package."""
    for path in re.findall(r'^(?:import|export)[^;]*?from\s+"([^"]+)"', (STATIC / name).read_text(), re.MULTILINE):
        assert path.startswith("."), path
    assert imports_of(name) <= set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_modules_import_only_what_is_exported(name: str) -> None:
    """Every imported name is exported by its module; a browser reports a wrong one only when it loads the page."""
    for names, path in re.findall(r'^import \{([^}]*)\} from "([^"]+)"', (STATIC / name).read_text(), re.MULTILINE):
        module = (STATIC / name).parent / path
        exported = re.findall(r"^export (?:async )?(?:class|const|function) (\w+)", module.read_text(), re.MULTILINE)
        assert set(re.findall(r"\w+", names)) <= set(exported), path


@pytest.mark.parametrize("entry", ["shell.js", "panel/main.js", "compare/main.js", "run/main.js"])
def test_a_page_asks_ahead_for_all_modules(entry: str) -> None:
    """A page preloads its module and all that it imports, directly or indirectly: no chain of round trips."""
    found = set(modules(entry))
    assert entry in found
    assert set().union(*map(imports_of, found)) <= found


@pytest.mark.parametrize("template", sorted((PLACE / "templates").glob("*.html")), ids=lambda path: path.name)
def test_templates_name_files_that_are_there(template: Path) -> None:
    """Every static file that a page asks for is in the package, and nothing comes from elsewhere."""
    text = template.read_text()
    for name in re.findall(r"\{\{ static \}\}/([a-z][^\"']*)", text):
        assert name in FILES
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//', text)


def test_no_file_names_another_host() -> None:
    """Nothing is loaded from a CDN: no file has a URL, apart from the names of XML and the examples in help."""
    for name in FILES:
        urls = re.findall(r"https?://[^\s\"'`)<]+", (STATIC / name).read_text())
        assert set(urls) <= {"http://www.w3.org/2000/svg", "http://localhost:4318"}, name


def test_the_files_are_packaged() -> None:
    """What the package data of pyproject.toml covers is all that is not code."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = PLACE.parent.parent
    covered = {
        path for pattern in settings["tool"]["setuptools"]["package-data"]["runspan"] for path in package.glob(pattern)
    }
    code = {".py", ".pyi", ".pyc", ".c", ".so", ".pyd"}
    needed = {path for path in package.rglob("*") if path.is_file() and path.suffix not in code}
    assert needed <= covered


def test_files_of_another_version_are_refused(page: Page, watch: Watch, filled: str) -> None:
    """A file of another version is not served: modules of two versions must not meet."""
    watch.allow("status of 404")
    answer = page.goto(f"{filled}/static/ffffffffffffffff/base.css")
    assert answer is not None
    assert answer.status == 404
    assert "load the page again" in answer.text()
