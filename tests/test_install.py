"""What is installed: the package without its extras is whole, and what an extra is needed for names the extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from runspan.cli import main
from runspan.cli.app import _COMMANDS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "runspan"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: {re.split(r"[<>=]", requirement)[0].replace("-", "_") for requirement in requirements}
    for name, requirements in PROJECT["optional-dependencies"].items()
}
SERVER = EXTRAS["server"] - {"runspan[cli]"} | {"werkzeug"}
POSTGRES = {requirement.partition("[")[0] for requirement in EXTRAS["postgres"]}
MODULES = sorted(
    ".".join(("runspan", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if path.name != "__main__.py"
)
OF_EXTRAS = ("runspan.cli", "runspan.web", "runspan.telemetry.prometheus", "runspan.storage.postgres")
CORE = [name for name in MODULES if not name.startswith(OF_EXTRAS)]


def python(program: str, without: set[str]) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter that does not have these packages."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({sorted(without)}))"
    command = [sys.executable, "-c", f"{absent}\n{program}"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_without_extras_everything_but_the_commands_and_the_server_is_there() -> None:
    absent = EXTRAS["cli"] | SERVER | EXTRAS["objects"] | POSTGRES
    assert {"click", "flask", "pydantic", "rich", "fsspec", "psycopg"} <= absent
    program = f"""
from importlib import import_module
for name in {CORE}:
    import_module(name)
import runspan
with runspan.Recorder(endpoint="http://127.0.0.1:9") as recorder:
    pass
"""
    assert python(program, absent).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "without", "what", "package", "extra"),
    [
        ([], EXTRAS["cli"] | SERVER, "the command line", "click", "cli"),
        (["serve"], SERVER, "runspan serve", "flask", "server"),
        (["demo"], SERVER, "runspan demo", "flask", "server"),
        (
            ["keys", "list", "--state", "postgresql://db"],
            POSTGRES,
            "a shared state in PostgreSQL",
            "psycopg",
            "postgres",
        ),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    arguments: list[str], without: set[str], what: str, package: str, extra: str
) -> None:
    program = f"from runspan.__main__ import main; sys.argv[1:] = {arguments}; main()"
    done = python(program, without)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"runspan: {what}: expected the package {package}")
    assert f"pip install 'runspan[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(_COMMANDS.keys() - {"serve", "demo"}))
def test_the_other_commands_do_not_need_the_server(name: str) -> None:
    done = python(f"from runspan.__main__ import main; sys.argv[1:] = [{name!r}, '--help']; main()", SERVER)
    assert done.returncode == 0, done.stderr


def test_an_import_names_the_extra_that_it_needs() -> None:
    done = python("import runspan; runspan.create_app", SERVER)
    assert "ConfigError: runspan.create_app: expected the package flask" in done.stderr
    assert "pip install 'runspan[server]'" in done.stderr


def test_what_is_missing_otherwise_stays_what_it_is() -> None:
    """A package that no extra has is a broken installation; a hint about extras would mislead."""
    done = python("from runspan.__main__ import main; sys.argv[1:] = ['list']; main()", {"msgspec"})
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr


def test_the_help_of_all_commands_is_theirs_and_imports_none_of_them() -> None:
    context = click.Context(main)
    for name, (_, _, short_help) in _COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == short_help
    program = """
from runspan.cli import main
main(["--help"], standalone_mode=False)
print(sorted(name for name in sys.modules if name.startswith("runspan.cli.")))
"""
    assert python(program, set()).stdout.endswith("['runspan.cli.app', 'runspan.cli.output']\n")
