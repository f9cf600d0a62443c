"""The static files: named by their digest, kept for ever, packed, complete, and all of them from this server."""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from runspan.web import pages
from runspan.web.pages.assets import load_assets, packed
from web.pages.chromium import Watch, watched

ROOT = Path(__file__).parents[3]
PLACE = Path(pages.__file__).parent
STATIC = PLACE / "static"
FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())


def test_a_second_visit_loads_nothing_again(page: Page, filled: str) -> None:
    """Files are named by the digest of all, so the browser takes them from its cache without a question."""
    page.goto(filled)
    expect(page.locator("table.runs tbody tr").first).to_be_visible()
    expect(page.locator(".histogram-chart")).to_be_visible()
    sizes = (
        "performance.getEntriesByType('resource').filter((e) => e.name.includes('/static/')).map((e) => e.transferSize)"
    )
    first = page.evaluate(sizes)
    assert len(first) == 5  # theme, styles of all pages and of this one, one script, and that of the chart
    assert all(size > 0 for size in first)
    page.goto(f"{filled}/?status=failed")
    expect(page.locator("table.runs tbody tr").first).to_be_visible()
    expect(page.locator(".histogram-chart")).to_be_visible()
    assert set(page.evaluate(sizes)) == {0}


def test_files_may_be_kept_for_ever_and_come_packed(filled: str) -> None:
    """Immutable for a year, under a path that changes with their content; zstd or gzip for who takes it."""
    assets = load_assets()
    with httpx.Client(base_url=f"{filled}/static/{assets.version}/", trust_env=False) as client:
        for name in FILES:
            body = assets.files[name].body
            for accepted, coding in (("gzip", "gzip"), ("gzip, br, zstd", "zstd"), ("identity", None)):
                response = client.get(name, headers={"Accept-Encoding": accepted})
                assert response.content == body
                assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
                assert response.headers["Vary"] == "Accept-Encoding"
                if coding is None or len(body) > 2000:
                    assert response.headers.get("Content-Encoding") == coding


@pytest.mark.parametrize(
    ("path", "is_packed"),
    [
        ("", True),
        ("?q=secret", True),
        ("workflows", True),
        ("runbooks", True),
        ("runs/secret", False),
        ("workflows/secret", False),
        ("compare?a=secret", False),
        ("secret", False),
    ],
)
def test_only_pages_that_repeat_nothing_of_the_request_come_packed(filled: str, path: str, is_packed: bool) -> None:
    """The size of the others would tell how much of an address is in the page as well."""
    headers = {"Accept-Encoding": "zstd", "Accept": "text/html"}
    response = httpx.get(f"{filled}/{path}", headers=headers, trust_env=False)
    assert response.headers.get("Content-Encoding") == ("zstd" if is_packed else None)
    assert ("secret" in response.text) != is_packed


@pytest.mark.parametrize(
    ("path", "size"), [("", 30_000), ("runs/run_000", 60_000), ("compare", 30_000), ("workflows", 30_000)]
)
def test_pages_are_light(filled: str, path: str, size: int) -> None:
    """What a page loads first, on the wire: no framework, no font, no picture, and one script."""
    assets = load_assets()
    page = httpx.get(f"{filled}/{path}", trust_env=False).text
    wanted = set(re.findall(rf'/static/{assets.version}/([^"]+)"', page)) - {"icon.svg"}
    assert {"base.css", "theme.js"} < wanted
    assert len([name for name in wanted if name.endswith(".js")]) == 2
    assert sum(len(packed(name, "zstd") or assets.files[name].body) for name in wanted) < size


_LATENCY = 100
_BYTES_A_MS = 50
_NEEDED = """
    (names) => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
        .filter((one) => one.entryType === "navigation" || names.some((name) => one.name.includes(name)))
        .map((one) => [one.transferSize, one.transferSize - one.encodedBodySize + one.decodedBodySize])
"""


@pytest.mark.parametrize(("path", "shown", "most"), [("", "table.runs tbody tr", 800), ("runs/run_005", ".node", 1500)])
def test_a_slow_line_is_enough(
    browser: Browser, filled: str, report: Callable[[str], None], path: str, shown: str, most: float
) -> None:
    """At 400 kbit/s and 100 ms the list and a run come in a second or two, the data fetched beside the script.

    What the line takes is compared, which does not depend on how busy this machine is: two round trips, and the bytes.
    """
    with watched(browser) as (context, page, _watch):
        line = {"offline": False, "latency": _LATENCY, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
        context.new_cdp_session(page).send("Network.emulateNetworkConditions", line)
        page.goto(f"{filled}/{path}", wait_until="commit")
        page.wait_for_selector(shown)
        took = page.evaluate("performance.now()")
        starts = page.evaluate(
            "['/api/v1/runs', '/main.js'].map((name) => performance.getEntriesByType('resource')"
            ".find((one) => one.name.includes(name)).startTime)"
        )
        sizes = page.evaluate(_NEEDED, ["/theme.js", ".css", "/main.js", f"/api/v1/{path or 'runs'}"])
        packed, unpacked = (2 * _LATENCY + sum(each) / _BYTES_A_MS for each in zip(*sizes, strict=True))
        report(f"/{path} at 400 kbit/s: {packed:.0f} ms, {unpacked:.0f} ms unpacked; shown after {took:.0f} ms")
        assert starts[0] - starts[1] < 100
        assert packed < most
        assert unpacked > 2.5 * packed


def imports_of(name: str) -> set[str]:
    """The static files that a module imports."""
    return resolved(name, r'\}\s*from\s*"([^"]+)"')


def imports_later_of(name: str) -> set[str]:
    """The static files that a module imports while it runs."""
    return resolved(name, r'^[^*\n]*\bimport\("([^"]+)"')


def resolved(name: str, pattern: str) -> set[str]:
    paths = re.findall(pattern, (STATIC / name).read_text(), re.MULTILINE)
    return {posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in paths}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_modules_import_only_what_is_there(name: str) -> None:
    """Every import is relative and leads to a file of the package."""
    for path in re.findall(r'^(?:import|export)[^;]*?from\s+"([^"]+)"', (STATIC / name).read_text(), re.MULTILINE):
        assert path.startswith("."), path
    assert imports_of(name) | imports_later_of(name) <= set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_modules_import_only_what_is_exported(name: str) -> None:
    """Every imported name is exported by its module; a browser reports a wrong one only when it loads the page."""
    for names, path in re.findall(r'^import \{([^}]*)\} from "([^"]+)"', (STATIC / name).read_text(), re.MULTILINE):
        module = (STATIC / name).parent / path
        exported = re.findall(r"^export (?:async )?(?:class|const|function) (\w+)", module.read_text(), re.MULTILINE)
        assert set(re.findall(r"\w+", names)) <= set(exported), path


@pytest.mark.parametrize(
    "entry",
    [
        "panel/main.js",
        "compare/main.js",
        "run/main.js",
        "run/worker.js",
        "workflow/main.js",
        "workflows/main.js",
        "shell.js",
    ],
)
def test_a_script_includes_what_it_imports(entry: str) -> None:
    """Directly or indirectly, each once; what it imports later is in another script, with what that needs besides."""
    script = load_assets().files[entry].body.decode()
    assert parts_of(script) == needed_by(entry)
    for later in imports_later_of(entry):
        script = load_assets().files[later].body.decode()
        assert parts_of(script) == needed_by(later) - needed_by(entry)


def test_the_chart_comes_later() -> None:
    """It is the only script of the panel that the list does not wait for."""
    assert imports_later_of("panel/main.js") == {"panel/histogram.js"}
    assert "panel/histogram.js" not in needed_by("panel/main.js")


def parts_of(script: str) -> set[str]:
    """The modules of a script, each of which it has once."""
    found = re.findall(r"^const \$(\w+) = \(\(\) => \{$", script, re.MULTILINE)
    assert len(found) == len(set(found))
    return set(found)


def needed_by(entry: str) -> set[str]:
    """A module and all that it imports, as the variables of a script are called."""
    needed: set[str] = set()
    pending = [entry]
    while pending:
        name = pending.pop()
        needed.add(name)
        pending += imports_of(name) - needed
    return {re.sub(r"\W", "_", name) for name in needed}


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
