"""The house itself: layers, first lines, the public face, and documentation held to the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

import runspan
from runspan import errors
from runspan.backends.sqlite import SqliteStore
from runspan.cli import main
from runspan.errors import ERROR_STATUSES, RunspanError, error_status
from runspan.web.app import create_app
from support.cli import subcommands

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "runspan"
MODULES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    ["__main__"],
    ["cli"],
    ["web"],
    ["verify"],
    ["archive", "watch"],
    ["sync"],
    ["parallel_export"],
    ["export", "forward", "resolve"],
    ["recorder"],
    ["sources", "backends", "delivery", "testing"],
    ["platform_api", "storage"],
    ["otlp"],
    ["http"],
    ["telemetry"],
    ["contracts"],
    ["codec"],
    ["model"],
    ["extras", "system"],
    ["errors", "_native", "_version"],
]
"""From the top down. A module imports only from its own row's own package, or from rows below."""

CORE = ("codec", "model")
NO_IO = {"os", "sys", "time", "socket", "pathlib", "io", "threading", "sqlite3", "httpx", "flask", "random", "secrets"}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def imports_of(path: Path) -> set[str]:
    """What a module imports when it runs; imports for the type checker alone do not count."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                folder = SOURCE.parent.joinpath(*inner.split("."))
                is_module = folder.is_dir() or folder.with_suffix(".py").exists()
                found.add(inner if is_module else node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_first_line_says_the_job(path: Path) -> None:
    """Every module begins with a docstring whose first line is one sentence of its job."""
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc, path
    first = doc.splitlines()[0]
    assert len(first) > 20
    assert first.endswith((".", ":"))


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    """No module imports from a room above or beside its own, so there is no cycle between rooms."""
    rank = {room: index for index, rooms in enumerate(LAYERS) for room in rooms}
    room = room_of(name_of(path))
    assert room in rank, f"{room} has no place in LAYERS"
    for module in imports_of(path):
        if not module.startswith("runspan."):
            continue
        other = room_of(module.removeprefix("runspan."))
        assert other == room or rank[other] > rank[room], f"{name_of(path)} imports {module}"


def test_no_import_cycle_inside_rooms() -> None:
    """Modules of one package do not import each other in a circle."""
    graph = {}
    for path in MODULES:
        name = f"runspan.{name_of(path)}".rstrip(".")
        graph[name] = {module for module in imports_of(path) if module.startswith("runspan") and module != name}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        for other in graph.get(name, ()):
            if other not in done and other != "runspan":
                visit(other, (*trail, name))
        done.add(name)

    done: set[str] = set()
    for name in sorted(graph):
        if name != "runspan":
            visit(name, ())


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(name_of(path)) in CORE], ids=name_of)
def test_the_core_does_no_io(path: Path) -> None:
    """The core imports nothing that reads a clock, a file, a socket or chance, and its first line says so."""
    assert not {module.split(".")[0] for module in imports_of(path)} & NO_IO
    assert "no I/O" in ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]  # type: ignore[union-attr]


def test_only_the_command_line_reads_the_environment() -> None:
    """``os.environ`` and ``sys.argv`` appear in the command line only."""
    for path in MODULES:
        if room_of(name_of(path)) in {"cli", "__main__", "testing"}:
            continue
        read = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not read & {"os.environ", "os.environb", "os.getenv", "sys.argv"}, path


def test_public_face() -> None:
    """``__all__`` is sorted, complete and there."""
    assert runspan.__all__ == sorted(runspan.__all__)
    for name in runspan.__all__:
        assert getattr(runspan, name) is not None
    with pytest.raises(AttributeError):
        runspan.nothing_of_the_kind  # noqa: B018


def test_importing_the_package_is_light() -> None:
    """An engine that only encodes does not load the web framework, the SDK or gRPC."""
    code = (
        "import sys, runspan; print(*[m for m in ('flask', 'grpc', 'opentelemetry.sdk', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_delivery_over_http_loads_no_grpc() -> None:
    """It takes a tenth of the start of every command, and of every worker of an export."""
    code = "import sys, runspan.parallel_export, runspan.recorder; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_error_has_an_outcome() -> None:
    """Every class of the error tree has an HTTP status and an exit code, and stands in the module's drawing."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RunspanError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
        made = kind("x", retry_after=1) if kind is errors.RateLimited else kind("x")
        assert 400 <= error_status(made).http_status < 600
        assert 0 < error_status(made).exit_code < 126
    assert len({row.code for row in ERROR_STATUSES.values()}) > 10


def test_errors_say_where_expected_got_and_hint() -> None:
    """The text of an error has all four parts."""
    error = errors.DocumentError(where="f:1 id", expected="a string", got="5", hint="quote it")
    assert str(error) == "f:1 id: expected a string, got 5 (quote it)"


# Documentation.


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}

    def add(command: click.Command, path: str) -> None:
        found[path] = command
        for name, child in subcommands(command).items():
            add(child, f"{path} {name}")

    add(main, "runspan")
    return found


def documentation() -> dict[str, str]:
    names = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in names}


def test_readme_names_every_command() -> None:
    """Every command of the command line is in the README's table of surfaces."""
    text = (ROOT / "README.md").read_text().replace("\\|", "|")
    for path, command in commands().items():
        if path == "runspan" or hasattr(command, "commands"):
            continue
        parent, _, name = path.rpartition(" ")
        assert path in text or re.search(rf"{parent} [a-z|]*\b{name}\b", text), path


def test_documented_options_exist() -> None:
    """Every option that the documentation writes after a command exists there."""
    known = commands()
    for file, text in documentation().items():
        for line in re.findall(r"^(?:\$ )?(runspan [^\n]*)$", text, re.MULTILINE):
            words = line.split()
            path = "runspan"
            for word in words[1:]:
                if f"{path} {word}" in known:
                    path = f"{path} {word}"
            options = {option for parameter in known[path].params for option in parameter.opts} | {
                "--help",
                "--version",
            }
            for word in words:
                if word.startswith("--"):
                    assert word.split("=")[0] in options, f"{file}: {line}"


def test_readme_names_every_route() -> None:
    """Every route of the application is in the README's table of surfaces."""
    text = (ROOT / "README.md").read_text()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        app = create_app(store, store)
        for rule in app.url_map.iter_rules():
            path = re.sub(r"<(?:[a-z_]+:)?([A-Za-z_]+)>", r"{\1}", rule.rule)
            path = path.replace("{run_id}", "{id}").replace("{trace_id}", "{traceId}")
            assert path in text, path
        store.close()


def test_links_in_the_documentation_lead_somewhere() -> None:
    """Every relative link of a Markdown file points at a file that is there."""
    for file, text in documentation().items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / file).parent.joinpath(target).exists(), f"{file}: {target}"


def test_python_in_the_readme_runs() -> None:
    """The Python examples of the README do what they say."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_architecture_names_every_room() -> None:
    """Every module and package at the top stands in the map, so that a newcomer finds it."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in SOURCE.iterdir():
        name = path.stem
        if name.startswith("__") or name in {"_version", "py", "testing"} or path.suffix not in {"", ".py"}:
            continue
        assert re.search(rf"`{name}[`/.]", text), name


def test_every_document_of_the_project_is_free_of_this_machine() -> None:
    """No file of the repository names a path of the machine that it was written on."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json"} and path.exists():
            assert not re.search(r"/(work|root|home)/[a-z]", path.read_text(errors="replace")), name
